// Attention over one source or several on a processor with AVX-512, as hmc_fast.kernels.reference has it.
//
// Products are oneDNN's small ones, which PyTorch offers to its own kernels. They add up in fp32, also
// those of bf16. Softmax is computed here, in fp32, while a block of scores is in the core's cache.

#include <exception>

#include "backward.h"
#include "forward.h"

namespace {

// 0 where it is done; 1 where this PyTorch has no such products for the processor, or the compiler was
// not told of bf16; 2 where memory ran out.
template <template <typename> class Pass, typename Problem>
int run(const Problem& problem) {
  try {
    if (!problem.is_bf16) {
      Pass<float>(problem).run();
      return 0;
    }
#ifdef __AVX512BF16__
    Pass<c10::BFloat16>(problem).run();
    return 0;
#else
    return 1;
#endif
  } catch (const std::bad_alloc&) {
    return 2;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // namespace

extern "C" int hmc_fast_attention(const hmc_fast::Problem* problem) { return run<hmc_fast::Attention>(*problem); }

extern "C" int hmc_fast_attention_backward(const hmc_fast::BackwardProblem* problem) {
  return run<hmc_fast::Differentiation>(*problem);
}
