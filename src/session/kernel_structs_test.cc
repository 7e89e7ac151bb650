#include "session/kernel_structs.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernel_engine/kernel_types.h"

namespace spile::session {
namespace {

using lang::StructField;
using lang::Structure;
using lang::Type;

/// The running kernel's own description.
class KernelTypesOfThisMachine : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = kernel_engine::load_kernel_btf("/sys/kernel/btf/vmlinux");
    if (!loaded) GTEST_SKIP() << loaded.error().message;
    types_.emplace(std::move(*loaded));
  }
  Structure structure(const std::string& name) {
    auto found = types_->structure(name);
    EXPECT_TRUE(found) << name;
    return found.value_or(Structure());
  }
  static const StructField* field(const Structure& structure, const std::string& name) {
    const auto found = std::ranges::find(structure.fields, name, &StructField::name);
    EXPECT_NE(found, structure.fields.end()) << name;
    return found == structure.fields.end() ? nullptr : &*found;
  }
  std::optional<KernelStructs> types_;
};

TEST_F(KernelTypesOfThisMachine, KnowTheTask) {
  const Structure task = structure("struct task_struct");
  EXPECT_GT(task.size_bytes, 1000u);
  EXPECT_EQ(field(task, "comm")->type, Type::string(16));
  EXPECT_EQ(field(task, "pid")->type, Type::integer(4, true));
  EXPECT_EQ(field(task, "real_parent")->type,
            Type::pointer_to(Type::structure("struct task_struct")));
}

TEST_F(KernelTypesOfThisMachine, BitfieldsLieInsideTheirUnits) {
  const Structure task = structure("struct task_struct");
  size_t bitfields = 0;
  for (const StructField& one : task.fields) {
    if (one.bits == 0) continue;
    bitfields++;
    EXPECT_LE(one.shift + one.bits, one.type.size * 8) << one.name;
    EXPECT_LE(one.offset_bytes + one.type.size, task.size_bytes) << one.name;
  }
  EXPECT_GT(bitfields, 3u);
}

TEST_F(KernelTypesOfThisMachine, AnonymousMembersCanBeAskedFor) {
  const Structure socket = structure("struct sock_common");
  const auto anonymous = std::ranges::find(socket.fields, "", &StructField::name);
  ASSERT_NE(anonymous, socket.fields.end());
  EXPECT_GT(structure(anonymous->type.name).size_bytes, 0u);
}

TEST_F(KernelTypesOfThisMachine, TypedefsAndConstants) {
  EXPECT_EQ(*types_->named("sector_t"), Type::uint64());
  EXPECT_EQ(*types_->enumerator("PIDTYPE_PID"), 0);
  EXPECT_EQ(*types_->enumerator("TCP_CLOSE"), 7);
  EXPECT_FALSE(types_->named("no_such_type"));
  EXPECT_FALSE(types_->structure("struct no_such"));
  EXPECT_FALSE(types_->structure("union task_struct"));
  EXPECT_FALSE(types_->structure("struct <1>"));
  EXPECT_FALSE(types_->enumerator("NO_SUCH"));
}

TEST_F(KernelTypesOfThisMachine, EnumsKnowTheirNames) {
  const auto named = types_->named("enum pid_type"), of = types_->enumeration_of("PIDTYPE_PID");
  ASSERT_TRUE(named && of);
  EXPECT_EQ(*named, *of) << "one enum is one type";
  EXPECT_TRUE(named->is_enum());
  EXPECT_EQ(named->name, "enum pid_type");
  EXPECT_EQ(named->layout->names.at(0), "PIDTYPE_PID");
  EXPECT_EQ(named->layout->values.at(0), 0);
  EXPECT_FALSE(types_->enumeration_of("NO_SUCH"));
  EXPECT_FALSE(types_->named("enum no_such"));
}

}  // namespace
}  // namespace spile::session
