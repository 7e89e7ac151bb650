#include "user_engine/sentries.h"

#include <signal.h>

#include <array>
#include <cstring>

#include "bpf/builder.h"
#include "user_engine/shm/maps.h"

namespace spile::user_engine {

namespace {

using bpf::Builder;
using bpf::Reg;
namespace regs = bpf::x86_64_regs;

constexpr int32_t kTrapBit = 1 << (SIGTRAP - 1);
/// Of the map's one value.
constexpr int16_t kWish = 0, kAnswer = 8;
constexpr uint32_t kValueBytes = 16;
/// On the program's stack: a word that was read; the map's key, then a name nobody looks at.
constexpr int16_t kWord = -8, kScratch = -32;
/// System calls (prctl, 0.15 to 0.3 us) between two looks at the answer: a hit may jump back 4096
/// times.
constexpr int kCallsPerLook = 48;
/// struct sigaction of the C libraries: the handler, then the mask.
constexpr int32_t kMaskOffset = 8;

struct Sentry {
  const char* symbol;
  bool is_action;
};
constexpr Sentry kSentries[] = {
    {"sigaction", true}, {"pthread_sigmask", false}, {"sigprocmask", false}};

/// kWord = the word at the address in r7 + offset; to `out` where it cannot be read.
void read_word(Builder& b, int32_t offset, Builder::Label out) {
  b.mov(Reg::r1, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r1, kWord);
  b.mov_imm(Reg::r2, 8);
  b.mov(Reg::r3, Reg::r7);
  b.alu_imm(bpf::kAdd, Reg::r3, offset);
  b.call(bpf::Helper::kProbeReadUser);
  b.jump_if_imm(bpf::kJne, Reg::r0, 0, out);
}

/// Notes the wish and waits for the answer.
void wait_for_answer(Builder& b, int map, Builder::Label out) {
  b.store_imm(4, Reg::r10, kScratch, 0);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, kScratch);
  b.load_map(Reg::r1, map);
  b.call(bpf::Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov(Reg::r6, Reg::r0);
  b.store_imm(8, Reg::r6, kWish, 1);
  b.mov_imm(Reg::r8, 4000);
  const auto look = b.new_label();
  b.bind(look);
  b.load(8, Reg::r0, Reg::r6, kAnswer);
  b.jump_if_imm(bpf::kJne, Reg::r0, 0, out);
  for (int i = 0; i < kCallsPerLook; i++) {
    b.mov(Reg::r1, Reg::r10);
    b.alu_imm(bpf::kAdd, Reg::r1, kScratch);
    b.mov_imm(Reg::r2, 16);
    b.call(bpf::Helper::kGetCurrentComm);
  }
  b.alu_imm(bpf::kSub, Reg::r8, 1);
  b.jump_if_imm(bpf::kJne, Reg::r8, 0, look);
  b.store_imm(8, Reg::r6, kAnswer, 1);  // nobody is there: the next need not wait
}

/// int sigaction(int signal, const struct sigaction* action, struct sigaction* former)
/// int pthread_sigmask(int how, const sigset_t* set, sigset_t* former)
Result<bpf::Program> program_of(const Sentry& sentry, int map) {
  Builder b;
  const auto out = b.new_label(), wish = b.new_label();
  b.load(8, Reg::r7, Reg::r1, regs::kSi);
  b.load(4, Reg::r6, Reg::r1, regs::kDi);
  b.jump_if_imm(bpf::kJeq, Reg::r7, 0, out);
  b.jump_if_imm(bpf::kJeq, Reg::r6, sentry.is_action ? SIGTRAP : SIG_UNBLOCK,
                sentry.is_action ? wish : out);
  read_word(b, sentry.is_action ? kMaskOffset : 0, out);
  b.load(8, Reg::r0, Reg::r10, kWord);
  b.alu_imm(bpf::kAnd, Reg::r0, kTrapBit);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.bind(wish);
  wait_for_answer(b, map, out);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return std::move(b).finish();
}

constexpr std::array<uint8_t, 4> kKey{};

}  // namespace

bool is_sentry(const bundle::Probe& probe) {
  return probe.kind == bundle::ProbeKind::kUprobe && probe.path.empty();
}

Result<int> add_sentries(bundle::Bundle& bundle) {
  bundle::MapSpec spec;
  spec.kind = bundle::MapKind::kArray;
  spec.key_size = 4;
  spec.value_size = kValueBytes;
  spec.max_entries = 1;
  const auto map = static_cast<int>(bundle.maps.size());
  bundle.maps.push_back(std::move(spec));
  for (const Sentry& sentry : kSentries) {
    bundle::Program program;
    program.name = sentry.symbol;
    program.context = bundle::ContextKind::kRegs;
    SPILE_TRY(program.code, program_of(sentry, map));
    bundle::Probe probe;
    probe.kind = bundle::ProbeKind::kUprobe;
    probe.name = probe.symbol = sentry.symbol;
    probe.program = static_cast<int>(bundle.programs.size());
    bundle.programs.push_back(std::move(program));
    bundle.probes.push_back(std::move(probe));
  }
  return map;
}

bool has_wish(const shm::Region& region, int map) {
  auto entry = shm::lookup(region, static_cast<size_t>(map), kKey);
  if (!entry || !*entry || (*entry)->values.empty()) return false;
  uint64_t wish = 0;
  const auto& value = (*entry)->values.front();
  if (value.size() < kValueBytes) return false;
  std::memcpy(&wish, &value[kWish], sizeof wish);
  return wish != 0;
}

Result<void> answer_wish(const shm::Region& region, int map) {
  const uint64_t value[2] = {1, 1};
  static_assert(sizeof value == kValueBytes);
  return shm::update(region, static_cast<size_t>(map), kKey,
                     {reinterpret_cast<const uint8_t*>(value), sizeof value});
}

}  // namespace spile::user_engine
