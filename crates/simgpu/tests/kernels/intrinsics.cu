// Uses most of what nvcc turns into PTX: the test only decodes it.
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cuda_pipeline.h>
namespace cg = cooperative_groups;
extern "C" __global__ void halves(__half2* o, const __half2* a, const __half2* b, __half* s) {
  int i = threadIdx.x; __half2 x = a[i], y = b[i];
  o[0] = __hadd2(x,y); o[1] = __hmul2(x,y); o[2] = __hfma2(x,y,x); o[3] = __hmax2(x,y); o[4] = __hmin2_nan(x,y);
  o[5] = h2exp(x); o[6] = h2rcp(y); o[7] = h2sqrt(x); o[8] = __hneg2(x); o[9]=__hfma2_relu(x,y,x); o[10]=__h2div(x,y); o[11]=h2tanh(x);
  s[0] = __hadd_sat(x.x,y.y); s[1] = __float2half_rz(3.14f*i); s[2]=__int2half_rn(i); s[3]=__hgt(x.x,y.x)?x.x:y.x; s[4]=hexp2(x.x); s[5]=hlog(x.x); s[6]=htrunc(x.x);
  unsigned m = __heq2_mask(x,y); o[12] = *(__half2*)&m; atomicAdd(&o[13], x); o[14]=__hcmadd(x,y,x);
  s[8] = __ushort2half_rn((unsigned short)i); s[9] = __half2int_rn(x.x) ? s[8] : x.x; s[10]=__habs(x.x);
}
extern "C" __global__ void bfs(__nv_bfloat162* o, const __nv_bfloat162* a, const __nv_bfloat162* b, __nv_bfloat16* s) {
  int i = threadIdx.x; auto x = a[i], y = b[i];
  o[0] = __hadd2(x,y); o[1] = __hmul2(x,y); o[2] = __hfma2(x,y,x); o[3] = __hmax2(x,y); o[4] = __hmin2_nan(x,y); o[5]=h2exp2(x); o[6]=__hsub2(x,y);
  s[0] = __hadd(x.x,y.y); s[1]=__float2bfloat16_rn(i*1.f); s[2]=__float2bfloat16_ru(i*1.f); o[7]=__floats2bfloat162_rn(i*1.f, 2.f); s[5]=hexp(x.x);
  float2 f = __bfloat1622float2(x); s[3] = f.x+f.y; s[4] = __hlt(x.x,y.x)?x.x:y.x; s[6]=__double2bfloat16(f.x*1.0); s[7]=__int2bfloat16_rn(i);
  atomicAdd(o+9, x); s[9] = __habs(x.x); s[10]=hrcp(x.x); s[11]=__bfloat162int_rz(x.x)?s[1]:s[2];
}
extern "C" __global__ void fp8(__nv_fp8x2_e4m3* o, const float2* a, float* f) { o[0]=__nv_fp8x2_e4m3(a[threadIdx.x]); o[1]=__nv_fp8x2_e4m3(a[1]); f[0]=float(__nv_fp8_e4m3(a[0].x)); f[1]=float(__nv_fp8_e5m2(a[0].x)); }
extern "C" __global__ void mathf(float* o, const float* a, double* d, long long* l) {
  float x = a[threadIdx.x], y = a[threadIdx.x+32];
  o[0]=expf(x); o[1]=logf(x); o[2]=powf(x,y); o[3]=sinf(x); o[4]=cosf(x); o[5]=tanhf(x); o[6]=erff(x); o[7]=rsqrtf(x); o[8]=fmodf(x,y); o[9]=__expf(x); o[10]=__fdividef(x,y); o[11]=exp2f(x); o[12]=log1pf(x);
  o[13]=ldexpf(x,3); o[14]=frexpf(x,(int*)&o[20]); o[15]=roundf(x); o[16]=rintf(x); o[17]=ceilf(x); o[18]=atan2f(x,y); o[19]=cbrtf(x); o[21]=__fadd_rz(x,y); o[22]=__fmaf_ru(x,y,x); o[23]=__frsqrt_rn(x); o[24]=hypotf(x,y); o[25]=__saturatef(x); o[26]=copysignf(x,y); o[27]=tgammaf(x); o[28]=lgammaf(x); o[29]=__powf(x,y); o[30]=__log2f(x); o[31]=nextafterf(x,y);
  d[0]=exp((double)x); d[1]=log((double)x); d[2]=sin((double)x); d[3]=pow((double)x,(double)y); d[4]=sqrt((double)x); d[5]=1.0/x; d[6]=rsqrt((double)x); d[7] = x*(double)y; d[8]=floor((double)x); d[9]=tanh((double)x); d[10] = __longlong_as_double(l[1]); d[11]=__fma_rn(d[0],d[1],d[2]);
  l[0]=(long long)x; l[1]=__float2ll_rn(x); l[2]=__double2ll_rz(d[0]); l[3]=__mul64hi(l[0],l[1]); l[4]=l[0]/l[1]; l[5]=l[0]%l[1]; l[6]=__clzll(l[0]); l[7]=__ffsll(l[1]); l[8]=__brevll(l[2]); l[9]=(unsigned long long)x; l[10]=isnan(x)+isinf(x)+signbit(x); l[11]=__popcll(l[1]); l[12]=llabs(l[0]); l[13]=__usad(l[0],l[1],3);
}
extern "C" __global__ void ints(int* o, const int* a, unsigned* u, short* s, unsigned char* c) {
  int x=a[threadIdx.x], y=a[1]; unsigned p=u[0], q=u[1];
  o[0]=x/y; o[1]=x%y; o[2]=__mulhi(x,y); o[3]=__clz(x); o[4]=__ffs(x); o[5]=__popc(x); o[6]=__brev(x); o[7]=__byte_perm(x,y,0x1234); o[8]=__funnelshift_l(x,y,p); o[9]=__dp4a(x,y,o[0]); o[10]=__vadd4(x,y); o[11]=__vmaxs2(x,y); o[13]=__sad(x,y,p); o[14]=__hadd(x,y); o[15]=__rhadd(x,y); o[16]=__vcmpgtu4(p,q); o[17]=min(x,y); o[18]=max(p,q); o[19]=abs(x); o[20]=__umul24(p,q); o[21]=__vsubus4(p,q); o[22]=__vavgu4(p,q); o[23]=__dp2a_lo(x,y,3); o[24]=__vadd2(x,y); o[25]=__vsetgtu2(p,q);
  s[0]=(short)x; s[1]=s[2]*s[3]; s[4]=s[5]/3; c[0]=c[1]+c[2]; c[3]=(unsigned char)(x>>3); c[4]=c[5]>c[6]; s[6]=s[7]>>2; u[2]=p/q; u[3]=p%q; u[4]=p/7; u[5]=p>>(q&31);
  switch (x) { case 0: o[30]=1; break; case 1: o[31]=5; break; case 2: o[32]=7; break; case 3: o[33]=9; break; case 4: o[34]=1; break; case 5: o[35]=p; break; case 6: o[36]=q; break; default: o[37]=1; }
}
extern "C" __global__ void warps(int* o, const int* a, float* f) {
  int x=a[threadIdx.x]; auto w = cg::tiled_partition<16>(cg::this_thread_block()); auto b = cg::this_thread_block();
  o[0]=w.shfl_down(x,2); o[1]=cg::reduce(w,x,cg::plus<int>()); o[2]=w.ballot(x>2); o[3]=w.any(x); o[4]=__match_any_sync(~0u,x); int p; o[5]=__match_all_sync(~0u,x,&p); o[6]=p; o[7]=__reduce_add_sync(~0u,x); o[8]=__activemask(); o[9]=w.match_any(x);
  b.sync(); auto c = cg::coalesced_threads(); if (x>1) { auto d = cg::coalesced_threads(); o[10]=d.shfl(x,0); o[11]=d.size(); if (d.thread_rank()==0) atomicAdd(o+12,d.size()); }
  o[13]=__syncthreads_count(x>1); o[14]=__syncthreads_or(x); __syncwarp(); o[15]=__shfl_xor_sync(~0u,x,3); f[0]=__shfl_sync(~0u,f[1],2); o[16]=__any_sync(~0u,x); o[17]=__all_sync(~0u,x); o[18] = __reduce_max_sync(~0u, x); o[19]=clock(); __nanosleep(10); f[3]=cg::reduce(w,f[2],cg::greater<float>());
  atomicMax(o+20,x); atomicCAS(o+21,x,3); atomicExch(f+4,1.f); atomicAdd(f+5,2.f); atomicAdd((double*)f+6,2.0); atomicInc((unsigned*)o+22,5u); atomicAnd(o+23,x); atomicAdd((unsigned long long*)o+20, 7ull); atomicMin((long long*)o+22,(long long)x); atomicAdd_block(o+40,1); atomicAdd_system(o+41,1); __threadfence(); __threadfence_block(); __threadfence_system(); 
}
extern "C" __global__ void pipes(int4* o, const int4* a) { extern __shared__ int4 s[]; auto b = cg::this_thread_block();
  __pipeline_memcpy_async(&s[threadIdx.x], &a[threadIdx.x], 16); __pipeline_commit(); __pipeline_wait_prior(0); __syncthreads(); o[threadIdx.x]=s[threadIdx.x^1];
  __syncthreads(); cg::memcpy_async(b, s, a, 1024); cg::wait(b); o[threadIdx.x+64]=s[threadIdx.x^3]; }
extern "C" __global__ void misc(float* o, const float* __restrict__ a, const __grid_constant__ int4 p) { assert(o[0]>0); printf("%d %f\n", p.x, a[0]); float l[8]; for(int i=0;i<8;i++) l[i]=a[i]; o[1]=l[p.y&7]; o[2]=__ldg(a+3); o[3]=__ldcs(a+4); __stcg(o+4,1.f); volatile float* v=o; v[5]=v[6]; const int4* pp=&p; o[7]=pp[0].z; }
__device__ __noinline__ float fn(float x, int n) { float s=0; for (int i=0;i<n;i++) s+=x*i; return s; }
__constant__ float table[16] = {1,2,3}; __device__ int counter; __device__ const char* text="hi";
extern "C" __global__ void calls(float* o) { o[0]=fn(o[1],3)+fn(o[2],7)+table[threadIdx.x&15]; atomicAdd(&counter,1); o[3]=text[threadIdx.x&1]; }
