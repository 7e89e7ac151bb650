#include "session/list_types.h"

#include <gtest/gtest.h>

#include "os/process.h"

namespace spile::session {
namespace {

TEST(NamesAType, AsInC) {
  EXPECT_TRUE(names_a_type("struct sock"));
  EXPECT_TRUE(names_a_type("union  x"));
  EXPECT_TRUE(names_a_type("enum pid_type"));
  EXPECT_FALSE(names_a_type("struct"));
  EXPECT_FALSE(names_a_type("structure x"));
  EXPECT_FALSE(names_a_type("kprobe:struct x"));
}

/// The running kernel's own description.
class KernelDeclaration : public testing::Test {
 protected:
  static constexpr const char* kBtf = "/sys/kernel/btf/vmlinux";
  void SetUp() override {
    if (!os::read_file(kBtf)) GTEST_SKIP() << "this kernel describes no types";
  }
  static std::string of(const std::string& name) {
    const auto text = kernel_declaration(kBtf, name);
    return text ? *text : "ERROR " + text.error().message;
  }
  static bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }
};

TEST_F(KernelDeclaration, IsWrittenAsC) {
  EXPECT_EQ(of("struct path"),
            "struct path {\n\tstruct vfsmount *mnt;\n\tstruct dentry *dentry;\n};\n");
  EXPECT_TRUE(has(of("enum pid_type"), "enum pid_type {\n\tPIDTYPE_PID = 0,\n"));
}

TEST_F(KernelDeclaration, SpellsDeclaratorsFromTheInside) {
  const std::string operations = of("struct file_operations");
  EXPECT_TRUE(has(operations, "\tssize_t (*read)(struct file *, char *, size_t, loff_t *);\n"))
      << operations;
  const std::string task = of("struct task_struct");
  EXPECT_TRUE(has(task, "\tchar comm[16];\n"));
  EXPECT_TRUE(has(task, ": 1;\n")) << "bitfields";
  EXPECT_TRUE(
      has(of("struct sock_common"), "\tunion {\n\t\t__addrpair skc_addrpair;\n\t\tstruct {\n"))
      << of("struct sock_common");
}

TEST_F(KernelDeclaration, ToldWhereThereIsNone) {
  EXPECT_EQ(of("struct no_such_struct"), "ERROR the kernel has no 'struct no_such_struct'");
}

}  // namespace
}  // namespace spile::session
