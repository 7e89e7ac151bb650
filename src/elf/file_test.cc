#include "elf/file.h"

#include <elf.h>
#include <sys/stat.h>

#include <cstring>

#include "elf/root_path.h"
#include "elf/test_files.h"

namespace spile::elf {
namespace {

using namespace testing;

std::vector<uint8_t> libz() {
  return bytes_of("/lib/x86_64-linux-gnu/libz.so.1");
}

template <typename Change>
Result<File> open_changed(Change change) {
  auto bytes = libz();
  Elf64_Ehdr h;
  std::memcpy(&h, bytes.data(), sizeof h);
  change(h);
  std::memcpy(bytes.data(), &h, sizeof h);
  return File::from_bytes(std::move(bytes), "changed");
}

TEST(File, KnowsWhatLibcIs) {
  auto file = File::open(kLibc);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->kind(), FileKind::kShared);
  EXPECT_EQ(file->soname(), "libc.so.6");
  EXPECT_TRUE(file->is_position_independent());
  EXPECT_FALSE(file->is_static());
  EXPECT_FALSE(file->is_go());
  EXPECT_EQ(file->needed(), std::vector<std::string>{"ld-linux-x86-64.so.2"});
  const auto notes = output_of(std::string("readelf -nW ") + kLibc);
  EXPECT_TRUE(notes.empty() || notes.contains("Build ID: " + file->build_id_hex()));
}

TEST(File, TellsProgramsFromLibraries) {
  Scratch scratch;
  const std::string source = "int main(void) { return 0; }\n";
  if (!compile(source, scratch / "pie", "-pie -fPIE")) GTEST_SKIP() << "no C compiler";
  ASSERT_TRUE(compile(source, scratch / "fixed", "-no-pie"));
  auto pie = File::open(scratch / "pie"), fixed = File::open(scratch / "fixed");
  ASSERT_TRUE(pie && fixed);
  EXPECT_EQ(pie->kind(), FileKind::kPie);
  EXPECT_EQ(fixed->kind(), FileKind::kExecutable);
  EXPECT_EQ(pie->interpreter(), "/lib64/ld-linux-x86-64.so.2");
  EXPECT_FALSE(pie->is_static());
  if (compile(source, scratch / "static", "-static-pie")) {
    auto alone = File::open(scratch / "static");
    ASSERT_TRUE(alone);
    EXPECT_EQ(alone->kind(), FileKind::kPie);
    EXPECT_TRUE(alone->is_static());
  }
}

TEST(File, ConvertsAddressesAndOffsetsBothWays) {
  auto file = File::open(kLibc);
  ASSERT_TRUE(file);
  for (const auto& s : file->segments()) {
    for (const uint64_t inside : {uint64_t{0}, s.file_size / 2, s.file_size - 1}) {
      ASSERT_EQ(file->to_offset(s.addr + inside), s.offset + inside);
      const auto back = file->to_link(s.offset + inside);
      ASSERT_TRUE(back);
      EXPECT_EQ(file->to_offset(*back), s.offset + inside);
    }
    EXPECT_EQ(file->to_offset(s.addr + s.file_size), std::nullopt);
    EXPECT_FALSE(file->read(s.addr, s.file_size + 1));
    EXPECT_TRUE(file->read(s.addr, s.file_size));
  }
  EXPECT_FALSE(file->to_offset(LinkAddr(~uint64_t{0})));
}

TEST(File, FindsCodeOnlyInExecutableSegments) {
  auto file = File::open(kLibc);
  ASSERT_TRUE(file);
  const auto *text = file->section(".text"), *data = file->section(".data");
  ASSERT_TRUE(text != nullptr && data != nullptr);
  EXPECT_TRUE(file->is_executable(text->addr));
  EXPECT_FALSE(file->is_executable(data->addr));
}

TEST(File, RefusesOtherMachinesInWords) {
  const auto wrong_class =
      open_changed([](Elf64_Ehdr& h) { h.e_ident[EI_CLASS] = ELFCLASS32, h.e_machine = EM_386; });
  ASSERT_FALSE(wrong_class);
  EXPECT_EQ(wrong_class.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(wrong_class.error().message.find("32-bit"), std::string::npos);
  const auto arm = open_changed([](Elf64_Ehdr& h) { h.e_machine = EM_AARCH64; });
  ASSERT_FALSE(arm);
  EXPECT_NE(arm.error().message.find("aarch64"), std::string::npos);
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_ident[EI_DATA] = ELFDATA2MSB; }).error().code,
            ErrorCode::kUnsupported);
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_type = ET_REL; }).error().code,
            ErrorCode::kUnsupported);
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_type = ET_CORE; }).error().code,
            ErrorCode::kUnsupported);
}

TEST(File, RefusesWhatIsNoElfFile) {
  Scratch scratch;
  write_file(scratch / "text", std::string(500, 'x'));
  EXPECT_EQ(File::open(scratch / "text").error().code, ErrorCode::kInvalid);
  write_file(scratch / "empty", "");
  EXPECT_EQ(File::open(scratch / "empty").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(File::open(scratch / "absent").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(File::open(scratch.path()).error().code, ErrorCode::kInvalid);
}

TEST(File, DoesNotWaitForAFifo) {
  Scratch scratch;
  ASSERT_EQ(::mkfifo((scratch / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(File::open(scratch / "fifo").error().code, ErrorCode::kInvalid);
}

TEST(File, RefusesImpossibleHeaderTables) {
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_phoff = ~uint64_t{0} - 8; }).error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_phentsize = 1; }).error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_shoff = h.e_shoff + 8; }).error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(open_changed([](Elf64_Ehdr& h) { h.e_shnum = 65000; }).error().code,
            ErrorCode::kCorrupt);
}

TEST(File, RefusesOverlappingSegments) {
  auto bytes = libz();
  Elf64_Ehdr h;
  std::memcpy(&h, bytes.data(), sizeof h);
  for (unsigned i = 0; i < h.e_phnum; ++i) {
    Elf64_Phdr p;
    std::memcpy(&p, bytes.data() + h.e_phoff + i * sizeof p, sizeof p);
    if (p.p_type != PT_LOAD) continue;
    p.p_memsz += 1 << 20;
    std::memcpy(bytes.data() + h.e_phoff + i * sizeof p, &p, sizeof p);
    break;
  }
  const auto file = File::from_bytes(std::move(bytes), "overlapping");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(file.error().message.find("overlaps"), std::string::npos);
}

TEST(File, NoticesThatAFileBecameShorter) {
  Scratch scratch;
  const auto bytes = libz();
  write_file(scratch / "file", std::string(bytes.begin(), bytes.end()));
  auto file = File::open(scratch / "file");
  ASSERT_TRUE(file);
  ASSERT_EQ(::truncate((scratch / "file").c_str(), 100), 0);
  const auto* text = file->section(".text");
  ASSERT_NE(text, nullptr);
  const auto code = file->bytes(*text);
  ASSERT_FALSE(code);
  EXPECT_EQ(code.error().code, ErrorCode::kCorrupt);
}

TEST(File, SeesGoPrograms) {
  Scratch scratch;
  if (!has_tool("go")) GTEST_SKIP() << "no Go tool chain";
  write_file(scratch / "main.go", "package main\nfunc main() { println(1) }\n");
  const auto build = fmt::format(
      "cd {0} && GOCACHE=${{GOCACHE:-/tmp/spile-go-cache}} GO111MODULE=off timeout 100 go build -o "
      "go main.go",
      scratch.path());
  if (!succeeds(build)) GTEST_SKIP() << "go build does not work here";
  auto file = File::open(scratch / "go");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_TRUE(file->is_go());
  EXPECT_TRUE(file->is_static());
}

TEST(RootPath, KeepsAbsoluteLinksInsideTheRoot) {
  Scratch scratch;
  std::filesystem::create_directories(scratch / "etc");
  std::filesystem::create_directories(scratch / "usr/lib");
  write_file(scratch / "usr/lib/x", "");
  std::filesystem::create_symlink("/usr/lib", scratch / "lib");
  std::filesystem::create_symlink("../../../../../../usr/lib/x", scratch / "etc/up");
  std::filesystem::create_symlink("loop", scratch / "loop");
  EXPECT_EQ(canonical_path(scratch.path(), "/lib/x").value_or("?"), "/usr/lib/x");
  EXPECT_EQ(canonical_path(scratch.path(), "//etc/./up").value_or("?"), "/usr/lib/x");
  EXPECT_EQ(canonical_path(scratch.path(), "/../..").value_or("?"), "/");
  EXPECT_EQ(canonical_path(scratch.path(), "/loop").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(canonical_path(scratch.path(), "/lib/y").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(canonical_path("", "relative").error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace spile::elf
