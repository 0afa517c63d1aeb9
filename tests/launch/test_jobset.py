"""`launch/jobset.sh`: what kubectl is given, read as YAML."""

import pathlib

import pytest
import yaml

from tests.launch.stand_ins import HOSTILE, TRAINING, one_line

COMMON = ("--name=joint", "--image=us-docker.pkg.dev/p/r/d4s_jax", "--chips=4")
TPU = (*COMMON, "--accelerator=tpu-v5p-slice", "--topology=4x4x4")
GPU = (*COMMON, "--accelerator=nvidia-h100-80gb", "--hosts=3")
KUBECTL = 'open(place + "/manifest", "w").write(sys.stdin.read()); sys.exit({})'


def submit(stand_ins, *words):
  stand_ins.add("kubectl", KUBECTL.format(0))
  done = stand_ins.run("jobset.sh", *words)
  assert done.returncode == 0 and done.stderr == "", done
  assert stand_ins.calls() == [["kubectl", "create", "--filename=-"]]
  return yaml.safe_load((stand_ins.place / "manifest").read_text())


def parts(manifest):
  """The only job, its pod and its container."""
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert manifest["metadata"]["name"] == "joint"
  [workers] = manifest["spec"]["replicatedJobs"]
  job = workers["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  return workers, job, pod, container


def test_slices_of_tpus(stand_ins):
  manifest = submit(
    stand_ins, *TPU, "--slices=2", "--spot", "--claim=runs", "--restarts=07", "--", *TRAINING
  )
  workers, job, pod, container = parts(manifest)
  assert workers["replicas"] == 2
  assert job["parallelism"] == job["completions"] == 16 and job["completionMode"] == "Indexed"
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "4x4x4",
    "cloud.google.com/gke-spot": "true",
  }
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert container["env"] == []
  assert manifest["metadata"]["annotations"] == {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
  }
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
  assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
    "memory": "/dev/shm",
    "runs": "/runs",
  }
  assert pod["volumes"][1]["persistentVolumeClaim"] == {"claimName": "runs"}
  assert container["command"] == ["launch/local.sh"]


def test_hosts_with_gpus_are_told_of_each_other(stand_ins):
  manifest = submit(stand_ins, *GPU, "--", *TRAINING)
  workers, job, pod, container = parts(manifest)
  assert workers["replicas"] == 1 and job["parallelism"] == job["completions"] == 3
  assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
  environment = {entry["name"]: entry for entry in container["env"]}
  # As JobSet names the first pod of the first job.
  assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == "joint-workers-0-0.joint:1234"
  assert environment["JAX_NUM_PROCESSES"]["value"] == "3"
  field = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_a_refused_training_ends_the_set_and_a_lost_node_does_not(stand_ins):
  manifest = submit(stand_ins, *TPU, "--", *TRAINING)
  _, job, pod, _ = parts(manifest)
  lost, refused = job["podFailurePolicy"]["rules"]
  assert (lost["action"], lost["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
  assert refused["action"] == "FailJob" and 1 in refused["onExitCodes"]["values"]
  [rule] = manifest["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0


def test_words_arrive_as_they_were(stand_ins):
  words = (
    *TRAINING,
    "--config.d=${NAME} $(JAX_PROCESS_ID) $$",
    "--config.e=\\n\"'",
    "--config.f=ä",
  )
  *_, container = parts(submit(stand_ins, *TPU, "--", *words))
  options, arguments = container["args"][:4], container["args"][4:]
  assert options == ["--restarts=10", "--backoff=10", "--", "--distributed"]
  # Kubernetes reads $$ as $, and leaves no other $ here to be read.
  assert [word.replace("$$", "$") for word in arguments] == list(words)
  assert all("$" not in word.replace("$$", "") for word in arguments)
  assert set(HOSTILE) <= set(words)


def test_what_kubectl_says_is_passed_on(stand_ins):
  stand_ins.add("kubectl", 'print("AlreadyExists", file=sys.stderr); sys.exit(1)')
  done = stand_ins.run("jobset.sh", *TPU, "--", *TRAINING)
  assert done.returncode == 1 and done.stderr == "AlreadyExists\n"


def test_the_template_is_yaml_and_every_place_in_it_is_filled(stand_ins):
  template = (pathlib.Path(__file__).parents[2] / "launch" / "jobset.yaml").read_text()
  assert yaml.safe_load(template)["metadata"]["name"] == "${NAME}"
  submit(stand_ins, *TPU, "--", "--config=a", "--workdir=b")
  assert "$" not in (stand_ins.place / "manifest").read_text()


@pytest.mark.parametrize(
  "options, message",
  [
    ((*TPU, "--topology=4x4x"), "--topology=4x4x; expected that of a slice"),
    ((*TPU, "--chips=3"), "--chips=3; expected a divisor of the 64 chips of 4x4x4"),
    ((*TPU, "--chips=0"), "--chips=0; expected at least 1"),
    ((*TPU, "--hosts=2"), "--hosts is for GPUs"),
    ((*GPU, "--topology=2x2"), "--topology and --slices are for TPUs"),
    (GPU[:-1], "--hosts=... is missing"),
    ((*GPU, "--hosts=0"), "--hosts=0; expected at least 1"),
    ((*TPU, "--slices=0"), "--slices=0; expected at least 1"),
    ((*TPU, "--name=-"), "--name=-; expected at most 40"),
  ],
)
def test_bad_options_are_one_line(stand_ins, options, message):
  assert message in one_line(stand_ins.run("jobset.sh", *options, "--", *TRAINING))
  assert not stand_ins.calls()


def test_the_end_of_a_line_in_a_word_is_refused(stand_ins):
  done = stand_ins.run("jobset.sh", *TPU, "--", *TRAINING, "--config.x=a\nb")
  assert "has a control character" in one_line(done)
