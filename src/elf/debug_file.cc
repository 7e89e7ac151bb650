#include "elf/debug_file.h"

#include <lzma.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <vector>

#include "elf/reader.h"
#include "elf/root_path.h"

namespace spile::elf {
namespace {

constexpr uint64_t kMaxUnpackedBytes = 256 << 20;
constexpr uint64_t kMaxXzMemoryBytes = 128 << 20;  ///< xz -9 needs 65 MiB

/// The checksum of .gnu_debuglink: CRC-32 as in zlib.
uint32_t crc32(std::span<const uint8_t> bytes, uint32_t crc = 0) {
  return lzma_crc32(bytes.data(), bytes.size(), crc);
}

struct DebugLink {
  std::string name;
  uint32_t crc = 0;
};

/// A file name, zeros up to a multiple of four, the checksum.
std::optional<DebugLink> read_debug_link(const File& file) {
  const auto* section = file.section(".gnu_debuglink");
  if (section == nullptr) return std::nullopt;
  const auto bytes = file.bytes(*section);
  if (!bytes) return std::nullopt;
  const auto name = string_at(*bytes, 0, 256);
  if (!name || name->empty() || name->find('/') != std::string_view::npos) return std::nullopt;
  const auto crc = load_at<uint32_t>(*bytes, (name->size() + 4) & ~size_t{3});
  if (!crc) return std::nullopt;
  return DebugLink{std::string(*name), *crc};
}

bool has_checksum(const File& file, uint32_t wanted) {
  constexpr uint64_t kStep = 1 << 20;
  uint32_t crc = 0;
  for (uint64_t at = 0; at < file.size_bytes(); at += kStep) {
    const auto bytes = file.read(FileOffset(at), std::min(kStep, file.size_bytes() - at));
    if (!bytes) return false;
    crc = crc32(*bytes, crc);
  }
  return crc == wanted;
}

bool belongs_to(const File& debug, const File& file, std::optional<uint32_t> crc) {
  if (!file.build_id().empty() || !debug.build_id().empty())
    return std::ranges::equal(file.build_id(), debug.build_id());
  return crc && has_checksum(debug, *crc);
}

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

struct Unpacked {
  lzma_stream stream = LZMA_STREAM_INIT;
  ~Unpacked() { lzma_end(&stream); }
};

Result<std::vector<uint8_t>> unpack_xz(std::span<const uint8_t> packed, const std::string& name) {
  Unpacked xz;
  if (lzma_stream_decoder(&xz.stream, kMaxXzMemoryBytes, 0) != LZMA_OK)
    return fail(ErrorCode::kInternal, "liblzma cannot be started");
  std::vector<uint8_t> out;
  std::array<uint8_t, 65536> chunk;
  xz.stream.next_in = packed.data();
  xz.stream.avail_in = packed.size();
  for (lzma_ret state = LZMA_OK; state != LZMA_STREAM_END;) {
    xz.stream.next_out = chunk.data();
    xz.stream.avail_out = chunk.size();
    state = lzma_code(&xz.stream, LZMA_FINISH);
    if (state != LZMA_OK && state != LZMA_STREAM_END)
      return fail(ErrorCode::kCorrupt, ".gnu_debugdata of {} cannot be unpacked (liblzma error {})",
                  name, static_cast<int>(state));
    const size_t got = chunk.size() - xz.stream.avail_out;
    if (out.size() + got > kMaxUnpackedBytes)
      return fail(ErrorCode::kUnsupported, ".gnu_debugdata of {} unpacks to more than 256 MiB",
                  name);
    out.insert(out.end(), chunk.begin(), chunk.begin() + static_cast<ptrdiff_t>(got));
  }
  return out;
}

}  // namespace

std::optional<File> open_debug_file(const File& file,
                                    const std::string& root,
                                    const std::string& path_in_root) {
  const auto try_open = [&](const std::string& path,
                            std::optional<uint32_t> crc) -> std::optional<File> {
    const auto real = canonical_path(root, path);
    if (!real) return std::nullopt;
    auto debug = File::open(root + *real, OpenMode::kDebug);
    if (!debug || debug->identity() == file.identity() || !belongs_to(*debug, file, crc))
      return std::nullopt;
    return std::move(*debug);
  };
  if (file.build_id().size() >= 2) {
    const auto hex = file.build_id_hex();
    const auto path =
        fmt::format("/usr/lib/debug/.build-id/{}/{}.debug", hex.substr(0, 2), hex.substr(2));
    if (auto debug = try_open(path, std::nullopt)) return debug;
  }
  const auto link = read_debug_link(file);
  if (!link || !path_in_root.starts_with('/')) return std::nullopt;
  const auto directory = directory_of(path_in_root);
  for (const auto& folder : {directory, directory + "/.debug", "/usr/lib/debug" + directory})
    if (auto debug = try_open(folder + "/" + link->name, link->crc)) return debug;
  return std::nullopt;
}

Result<std::optional<File>> open_gnu_debugdata(const File& file) {
  const auto* section = file.section(".gnu_debugdata");
  if (section == nullptr) return std::nullopt;
  SPILE_TRY(const auto packed, file.bytes(*section));
  SPILE_TRY(auto bytes, unpack_xz(packed, file.path()));
  auto mini = File::from_bytes(std::move(bytes), file.path() + "!.gnu_debugdata", OpenMode::kDebug);
  if (!mini) return forward(mini);
  return std::optional<File>(std::move(*mini));
}

}  // namespace spile::elf
