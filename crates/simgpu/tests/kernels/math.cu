// CUDA's mathematical functions, whose code is compiled into the kernel.

extern "C" __global__ void singles(float* out, const float* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float x = in[i], y = in[n + i];
  float results[] = {expf(x),  logf(y),  powf(y, x), sinf(x),     cosf(x),     tanhf(x),  erff(x),     exp2f(x),
                     log2f(y), cbrtf(x), atan2f(x, y), x / y,     sqrtf(y),    rsqrtf(y), fmodf(x, y), __expf(x),
                     log1pf(y), hypotf(x, y), floorf(x), rintf(x), expm1f(x),  1.0f / x,  tanf(x),     acosf(x / 100)};
  for (int j = 0; j < 24; ++j) out[j * n + i] = results[j];
}

extern "C" __global__ void doubles(double* out, const float* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  double x = in[i], y = in[n + i];
  double results[] = {exp(x), log(y), pow(y, x), sin(x), tanh(x), x / y, sqrt(y), cbrt(x)};
  for (int j = 0; j < 8; ++j) out[j * n + i] = results[j];
}

extern "C" __global__ void integers(long long* out, const long long* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  long long x = in[i], y = in[n + i];
  int a = (int)x, b = (int)y | 1;
  long long results[] = {x / y, x % y, (long long)((unsigned long long)x / (unsigned long long)y),
                         __mul64hi(x, y), a / b, a % b, (unsigned)a / (unsigned)b, x / 7, __ffsll(x), __popcll(y),
                         (long long)(float)x, (long long)(double)x, __float2int_rn((float)a), x >> (y & 63)};
  for (int j = 0; j < 14; ++j) out[j * n + i] = results[j];
}
