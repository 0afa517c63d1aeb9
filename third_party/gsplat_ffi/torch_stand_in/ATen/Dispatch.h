// Stands in for torch's dispatch on a tensor's type: here everything is float.
#pragma once

#define AT_DISPATCH_FLOATING_TYPES(TYPE, NAME, ...) \
  do {                                              \
    using scalar_t = float;                         \
    (__VA_ARGS__)();                                \
  } while (false)
