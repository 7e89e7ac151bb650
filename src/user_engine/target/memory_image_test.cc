#include "user_engine/target/memory_image.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "elf/file.h"
#include "elf/unwind.h"
#include "symbols/module_symbols.h"
#include "user_engine/target/test_program.h"

namespace spile::target {
namespace {

/// In this program's own memory, so that an image of it looks like Go's.
[[gnu::used]] const volatile char kGoMark[] = "\xff Go buildinf:";

struct Looked {
  os::ProcessMemory memory;
  std::vector<Module> modules;

  const Module* named(std::string_view part) const {
    auto found = std::ranges::find_if(
        modules, [&](const Module& m) { return m.path.find(part) != std::string::npos; });
    return found == modules.end() ? nullptr : &*found;
  }
};

Looked look_at_self() {
  Looked looked;
  auto memory = os::ProcessMemory::open(getpid());
  auto maps = os::read_maps(getpid());
  if (!memory || !maps) return looked;
  looked.memory = std::move(*memory);
  looked.modules = find_modules(*maps, looked.memory, getpid());
  return looked;
}

TEST(MemoryImage, ReadsLikeTheFileItWasLoadedFrom) {
  const Looked self = look_at_self();
  const Module* libc = self.named("libc.so");
  ASSERT_NE(libc, nullptr);
  auto image = make_memory_image(self.memory, *libc);
  ASSERT_TRUE(image) << image.error().message;
  const std::string path = fmt::format("/proc/self/fd/{}", image->get());
  auto ours = symbols::ModuleSymbols::load(path, {"", "", false});
  auto theirs = symbols::ModuleSymbols::load(libc->host_path, {"", "", false});
  ASSERT_TRUE(ours && theirs);
  EXPECT_EQ(ours->file().build_id_hex(), theirs->file().build_id_hex());
  EXPECT_EQ(ours->file().soname(), theirs->file().soname());
  for (const char* name : {"malloc", "fopen", "qsort"}) {
    ASSERT_EQ(ours->find(name).size(), theirs->find(name).size()) << name;
    EXPECT_EQ(ours->find(name).front()->addr, theirs->find(name).front()->addr);
    EXPECT_EQ(ours->find(name).front()->size, theirs->find(name).front()->size);
  }
  auto ours_unwind = ours->unwind(), theirs_unwind = theirs->unwind();
  ASSERT_TRUE(ours_unwind && theirs_unwind);
  EXPECT_EQ((*ours_unwind)->functions().size(), (*theirs_unwind)->functions().size());
  EXPECT_GT((*ours_unwind)->functions().size(), 1000u);
  for (const elf::Segment& segment : theirs->file().segments()) {
    if (segment.writable) continue;
    auto a = ours->file().read(segment.addr, segment.file_size);
    auto b = theirs->file().read(segment.addr, segment.file_size);
    ASSERT_TRUE(a && b);
    if (segment.offset.value == 0) continue;  // the header has lost its section table
    EXPECT_TRUE(*a == *b) << "segment at " << segment.addr.value;
  }
}

TEST(MemoryImage, AGoProgramsIsRefused) {
  const Looked self = look_at_self();
  const Module* program = self.named("spile_user_engine_target_test");
  ASSERT_NE(program, nullptr);
  auto image = make_memory_image(self.memory, *program);
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(image.error().message.find("Go"), std::string::npos);
}

TEST(MemoryImage, HeadersThatLieAreNoHarm) {
  const Looked self = look_at_self();
  const Module* libc = self.named("libc.so");
  ASSERT_NE(libc, nullptr);
  Module lies = *libc;
  lies.loads.front().offset = FileOffset(uint64_t{1} << 40);
  EXPECT_FALSE(make_memory_image(self.memory, lies)) << "an image of a terabyte";
  lies.loads.front().offset = FileOffset(~uint64_t{0} - 0xfff);
  EXPECT_FALSE(make_memory_image(self.memory, lies)) << "an end that wraps around";
  lies = *libc;
  for (LoadSegment& load : lies.loads) load.address = LinkAddr(load.address.value + (1ull << 45));
  EXPECT_FALSE(make_memory_image(self.memory, lies)) << "code that is not mapped";
}

}  // namespace
}  // namespace spile::target
