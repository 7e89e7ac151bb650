// What the kernel's text files say, and the names of our own events: pure.
#include <gtest/gtest.h>

#include "kernel_engine/attach_path.h"
#include "kernel_engine/knowledge.h"
#include "kernel_engine/perf_event.h"
#include "kernel_engine/tracefs_event.h"

namespace spile::kernel_engine {
namespace {

TEST(KprobeList, ReadsEveryFormOfALine) {
  auto plain = parse_active_kprobe("ffffffff812a0000  k  vfs_read+0x0    ");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->address, 0xffffffff812a0000u);
  EXPECT_EQ(plain->place, "vfs_read+0x0");
  EXPECT_EQ(plain->state, "");
  auto inside = parse_active_kprobe("ffffffff812a0078  r  do_unlinkat+0x78    [OPTIMIZED]");
  ASSERT_TRUE(inside);
  EXPECT_EQ(inside->type, 'r');
  EXPECT_EQ(inside->state, "[OPTIMIZED]");
  auto module =
      parse_active_kprobe("ffffffffc0000000  k  nf_hook+0x0  nf [nf_core] [DISABLED][FTRACE]");
  ASSERT_TRUE(module);
  EXPECT_EQ(module->module, "nf_core");
  EXPECT_EQ(module->state, "[DISABLED][FTRACE]");
}

TEST(KprobeList, ReadsAFunctionOfAModuleAndOneThatIsGone) {
  auto module = parse_active_kprobe("ffffffffc0502144  k  dummy_xmit+0x4  dummy [FTRACE]");
  ASSERT_TRUE(module);
  EXPECT_EQ(module->module, "dummy");
  EXPECT_EQ(module->state, "[FTRACE]");
  auto gone = parse_active_kprobe("ffffffffc0502144  k  0xffffffffc0502144 [GONE][FTRACE]");
  ASSERT_TRUE(gone);
  EXPECT_EQ(gone->place, "0xffffffffc0502144");
  EXPECT_EQ(gone->module, "");
  EXPECT_EQ(gone->state, "[GONE][FTRACE]");
}

TEST(KprobeList, PassesOverOtherLines) {
  for (const char* line :
       {"", "words", "zz  k  vfs_read+0x0", "ffffffff812a0000  kprobe  vfs_read"})
    EXPECT_FALSE(parse_active_kprobe(line)) << line;
}

TEST(Blacklist, HoldsRangesWithTheirFunctions) {
  auto entry = parse_blacklist_entry("0xffffffff81c01000-0xffffffff81c01050\tasm_exc_int3");
  ASSERT_TRUE(entry);
  std::vector<BlacklistEntry> entries = {*entry};
  EXPECT_EQ(find_blacklisted(entries, "asm_exc_int3", 0), &entries[0]);
  EXPECT_EQ(find_blacklisted(entries, "", 0xffffffff81c0104f), &entries[0]);
  EXPECT_EQ(find_blacklisted(entries, "", 0xffffffff81c01050), nullptr);
  EXPECT_EQ(find_blacklisted(entries, "vfs_read", 0xffffffff81000000), nullptr);
  EXPECT_FALSE(parse_blacklist_entry("0xffffffff81c01000 asm_exc_int3"));
}

TEST(Traceable, ModulesFollowTheName) {
  EXPECT_EQ(function_of_line("vfs_read"), "vfs_read");
  EXPECT_EQ(function_of_line("nf_hook [nf_core]"), "nf_hook");
}

TEST(Cpus, AreRangesAndNumbers) {
  EXPECT_EQ(parse_cpu_list("0"), std::vector<int>({0}));
  EXPECT_EQ(parse_cpu_list("0-2,5\n"), std::vector<int>({0, 1, 2, 5}));
  EXPECT_TRUE(parse_cpu_list("").empty());
}

TEST(TracefsEvents, TellTheirOwner) {
  EXPECT_EQ(owner_of("spile_12_345"), (EventOwner{12, 345}));
  for (const char* group :
       {"spile_12", "spile_x_1", "spile_12_", "spile_12_3x", "kprobes", "spile_0_5", "spile_-3_5"})
    EXPECT_FALSE(owner_of(group)) << group;
}

TEST(TracefsEvents, AreRecognisedInTheKernelsList) {
  auto kprobe = parse_definition("p:spile_12_345/e0 do_sys_open+0");
  ASSERT_TRUE(kprobe);
  EXPECT_EQ(kprobe->group, "spile_12_345");
  EXPECT_EQ(kprobe->name, "e0");
  auto uprobe = parse_definition("r8:uprobes/p_sh_0x10 /bin/sh:0x0000000000000010 arg1=%ax");
  ASSERT_TRUE(uprobe);
  EXPECT_EQ(uprobe->group, "uprobes");
  EXPECT_FALSE(parse_definition("p /bin/sh:0x10"));
  EXPECT_FALSE(parse_definition(""));
}

TEST(AttachPaths, HaveNames) {
  EXPECT_EQ(*attach_path_of("kprobe.multi"), AttachPath::kMulti);
  EXPECT_EQ(*attach_path_of("tracefs"), AttachPath::kTracefs);
  EXPECT_EQ(name_of(AttachPath::kIoctl), "ioctl");
  EXPECT_FALSE(attach_path_of("magic"));
}

}  // namespace
}  // namespace spile::kernel_engine
