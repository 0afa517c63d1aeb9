// Stands in for torch's streams; getCurrentCUDAStream is with the tensor.
#pragma once

#include "ATen/core/Tensor.h"
