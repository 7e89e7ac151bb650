#include "user_engine/shm/helpers.h"

#include "abi/hit_frame.h"
#include "user_engine/rt/identity.h"
#include "user_engine/rt/map_ops.h"
#include "user_engine/rt/ring_ops.h"
#include "user_engine/rt/safe_read.h"
#include "user_engine/rt/time_ops.h"

namespace spile::shm {
namespace {

uint8_t* bytes_at(uint64_t address) {
  return reinterpret_cast<uint8_t*>(address);
}
const abi::RtMap& map_at(uint64_t address) {
  return *reinterpret_cast<const abi::RtMap*>(address);
}

/// The table with the constants bound, and shorter names.
struct Binder {
  const abi::RtConsts& consts;
  bpf::HelperTable table;

  template <typename F>
  void set(bpf::Helper helper, F f) {
    table.set(helper,
              [&c = consts, f](uint64_t r1, uint64_t r2, uint64_t r3, uint64_t r4, uint64_t) {
                return static_cast<uint64_t>(f(c, r1, r2, r3, r4));
              });
  }
};

using Consts = abi::RtConsts;
using U = uint64_t;

void bind_maps(Binder& binder) {
  binder.set(bpf::Helper::kMapLookupElem, [](const Consts& c, U map, U key, U, U) {
    return reinterpret_cast<uint64_t>(
        rt::map_lookup(c, map_at(map), bytes_at(key), rt::current_cpu(c)));
  });
  binder.set(bpf::Helper::kMapLookupPercpuElem, [](const Consts& c, U map, U key, U cpu, U) {
    if (cpu > c.cpu_mask) return uint64_t{0};
    return reinterpret_cast<uint64_t>(
        rt::map_lookup(c, map_at(map), bytes_at(key), static_cast<uint32_t>(cpu)));
  });
  binder.set(bpf::Helper::kMapNextKey, [](const Consts&, U map, U position, U key, U) {
    return rt::map_next_key(map_at(map), position, bytes_at(key));
  });
  binder.set(bpf::Helper::kMapUpdateElem, [](const Consts& c, U map, U key, U value, U flags) {
    return rt::map_update(c, map_at(map), bytes_at(key), bytes_at(value), flags,
                          rt::current_cpu(c));
  });
  binder.set(bpf::Helper::kMapDeleteElem, [](const Consts& c, U map, U key, U, U) {
    return rt::map_delete(c, map_at(map), bytes_at(key));
  });
}

void bind_identity(Binder& binder) {
  binder.set(bpf::Helper::kKtimeGetNs,
             [](const Consts& c, U, U, U, U) { return rt::clock_ns(c, rt::Clock::kMonotonic); });
  binder.set(bpf::Helper::kKtimeGetBootNs,
             [](const Consts& c, U, U, U, U) { return rt::clock_ns(c, rt::Clock::kBoottime); });
  binder.set(bpf::Helper::kGetSmpProcessorId,
             [](const Consts& c, U, U, U, U) { return rt::current_cpu(c); });
  binder.set(bpf::Helper::kGetCurrentPidTgid,
             [](const Consts& c, U, U, U, U) { return rt::pid_tgid(c); });
  binder.set(bpf::Helper::kGetCurrentUidGid,
             [](const Consts& c, U, U, U, U) { return rt::uid_gid(c); });
  binder.set(bpf::Helper::kGetCurrentComm, [](const Consts& c, U to, U bytes, U, U) {
    return rt::current_comm(c, bytes_at(to), static_cast<uint32_t>(bytes));
  });
  binder.set(bpf::Helper::kGetAttachCookie, [](const Consts&, U context, U, U, U) {
    return reinterpret_cast<const abi::HitFrame*>(context)->cookie;
  });
}

void bind_memory(Binder& binder) {
  for (const auto helper : {bpf::Helper::kProbeReadUser, bpf::Helper::kProbeReadKernel}) {
    binder.set(helper, [](const Consts& c, U to, U bytes, U from, U) {
      return rt::probe_read(c, bytes_at(to), static_cast<uint32_t>(bytes), from);
    });
  }
  for (const auto helper : {bpf::Helper::kProbeReadUserStr, bpf::Helper::kProbeReadKernelStr}) {
    binder.set(helper, [](const Consts& c, U to, U bytes, U from, U) {
      return rt::probe_read_str(c, bytes_at(to), static_cast<uint32_t>(bytes), from);
    });
  }
}

void bind_ring(Binder& binder) {
  binder.set(bpf::Helper::kRingbufOutput, [](const Consts& c, U map, U from, U bytes, U) {
    return rt::ring_output(c, map_at(map), bytes_at(from), bytes);
  });
  binder.set(bpf::Helper::kRingbufReserve, [](const Consts& c, U map, U bytes, U, U) {
    return reinterpret_cast<uint64_t>(rt::ring_reserve(c, map_at(map), bytes));
  });
  binder.set(bpf::Helper::kRingbufSubmit, [](const Consts& c, U body, U, U, U) {
    rt::ring_submit(c, bytes_at(body));
    return 0;
  });
  binder.set(bpf::Helper::kRingbufDiscard, [](const Consts& c, U body, U, U, U) {
    rt::ring_discard(c, bytes_at(body));
    return 0;
  });
}

}  // namespace

bpf::HelperTable make_helpers(const Region& region) {
  Binder binder{region.consts(), {}};
  bind_maps(binder);
  bind_identity(binder);
  bind_memory(binder);
  bind_ring(binder);
  return std::move(binder.table);
}

std::vector<uint64_t> map_addresses(const Region& region) {
  std::vector<uint64_t> addresses;
  for (size_t i = 0; i < region.map_count(); ++i)
    addresses.push_back(reinterpret_cast<uint64_t>(&region.map(i)));
  return addresses;
}

}  // namespace spile::shm
