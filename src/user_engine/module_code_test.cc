// What a module of a process says about its own code: this program, which has an example of each.
#include "user_engine/module_code.h"

#include <gtest/gtest.h>

#include <algorithm>

// A return from signal handlers by other bytes than the C library's: unwinders know it by its table
// alone.
extern "C" void spile_engine_test_signal_return();
asm(R"(
  .pushsection .text
  .p2align 4
  .globl spile_engine_test_signal_return
  .type spile_engine_test_signal_return, @function
  .cfi_startproc
  .cfi_signal_frame
  nop
spile_engine_test_signal_return:
  mov $15, %eax
  syscall
  hlt
  .cfi_endproc
  .size spile_engine_test_signal_return, . - spile_engine_test_signal_return
  .popsection
)");

// A restartable sequence that nobody runs.
extern "C" void spile_engine_test_sequence();
asm(R"(
  .pushsection __rseq_cs, "aw"
  .balign 32
  .long 0, 0
  .quad 1f, 2f - 1f, 3f
  .popsection
  .pushsection .text
  .p2align 4
  .globl spile_engine_test_sequence
  .type spile_engine_test_sequence, @function
spile_engine_test_sequence:
1:
  mov $1, %eax
  mov $2, %ecx
2:
  ret
  .byte 0x0f, 0xb9, 0x3d
  .long 0x53053053
3:
  ret
  .size spile_engine_test_sequence, . - spile_engine_test_sequence
  .popsection
)");

namespace spile::user_engine {
namespace {

/// What becomes of a probe on a function of this program.
patch::Outcome plan(void (*function)()) {
  const TargetAddr at(reinterpret_cast<uint64_t>(function));
  auto target = target::Target::open_self();
  EXPECT_TRUE(target);
  auto modules = target->modules();
  EXPECT_TRUE(modules);
  const auto self =
      std::ranges::find_if(*modules, [&](const target::Module& m) { return m.contains(at); });
  EXPECT_NE(self, modules->end());
  auto image = ModuleImage::load(*target, *self);
  EXPECT_TRUE(image) << image.error().message;
  return patch::plan_entry(image->code(), at);
}

TEST(ModuleImage, ReservesTheReturnFromSignalHandlersWhateverItsBytes) {
  const auto outcome = plan(spile_engine_test_signal_return);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, patch::RefusalKind::kReserved);
  EXPECT_NE(outcome.error().reason.find("signal handler"), std::string::npos)
      << outcome.error().reason;
}

TEST(ModuleImage, ReservesRestartableSequences) {
  const auto outcome = plan(spile_engine_test_sequence);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, patch::RefusalKind::kReserved);
  EXPECT_NE(outcome.error().reason.find("rseq"), std::string::npos) << outcome.error().reason;
}

TEST(ModuleImage, LeavesOtherFunctionsAlone) {
  EXPECT_TRUE(plan(reinterpret_cast<void (*)()>(&plan)));
}

}  // namespace
}  // namespace spile::user_engine
