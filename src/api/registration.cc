#include "api/registration.h"

#include <cerrno>
#include <map>

#include "api/readers.h"
#include "api/self.h"

namespace spile::api {

int busy_inside() {
  return refuse(-EBUSY, "called from inside a handler, which would wait for itself");
}

/// Behind a removal: nobody runs what was taken out any more. The lock is not held: a handler that
/// is waited for may register something.
int wait_until_gone(OldLists lists) {
  const auto waited = wait_for_readers();
  if (waited) return 0;
  for (auto& list : lists) (void)list.release();
  return refuse(waited.error());
}

int refuse(const Refused& refused) {
  return refuse(refused.number, refused.text.c_str());
}
/// Sets `address` from a symbol or an address, exactly one of them.
int resolve(const spile_kprobe& p, TargetAddr& address) {
  if ((p.symbol_name == nullptr) == (p.addr == nullptr))
    return refuse(-EINVAL, "give either symbol_name or addr");
  if (p.addr != nullptr) {
    address = TargetAddr(reinterpret_cast<uint64_t>(p.addr) + p.offset);
    return 0;
  }
  auto self = Self::now();
  if (!self) return refuse(self.error());
  const auto found = (*self)->find(p.symbol_name);
  if (!found) return refuse(found.error());
  if (found->size() > 1)
    return refuse(-EADDRNOTAVAIL, "several functions have this name: give an address");
  address = found->front() + p.offset;
  return 0;
}

int resolve_many(const char* const* symbols, int count, std::vector<TargetAddr>& to) {
  for (int i = 0; i < count; ++i) {
    spile_kprobe named = {};
    named.symbol_name = symbols[i];
    TargetAddr address;
    if (const int error = resolve(named, address)) return error;
    to.push_back(address);
  }
  return 0;
}

unsigned state_flags(const Place& place, unsigned given) {
  unsigned flags = given & SPILE_FLAG_DISABLED;
  if (place.at_entry) flags |= SPILE_FLAG_ON_FUNC_ENTRY;
  if (flags & SPILE_FLAG_DISABLED) return flags;
  if (place.mechanism == Mechanism::kEntryNops) return flags | SPILE_FLAG_FTRACE;
  return place.mechanism == Mechanism::kJump ? flags | SPILE_FLAG_OPTIMIZED : flags;
}

namespace {

FunctionWants add_returns(Self& self, const patch::Returns& returns, std::vector<Want> wants) {
  if (!returns.plain)
    return std::unexpected(Refused{
        -EOPNOTSUPP,
        fmt::format("{} leaves by jumps into other functions ({}): its returns are not probed yet",
                    self.describe(returns.function), returns.describe())});
  for (const TargetAddr ret : returns.rets) wants.push_back({ret, wants.front().allow_trap, false});
  return wants;
}

}  // namespace

Result<std::vector<FunctionWants>> wants_of(std::span<const TargetAddr> functions,
                                            bool allow_trap,
                                            bool with_returns) {
  SPILE_TRY(Self * self, Self::now());
  Self::FoundReturns returns;
  if (with_returns) {
    SPILE_TRY(returns, self->returns_of(functions));
  }
  std::vector<FunctionWants> all;
  for (const TargetAddr at : functions) {
    const auto* image = self->image_at(at);
    if (image == nullptr || image->function_start(at) == user_engine::ModuleImage::Start::kNone) {
      all.push_back(std::unexpected(
          Refused{-EINVAL, fmt::format("no function that is called begins at {}", at)}));
      continue;
    }
    std::vector<Want> entry = {{at, allow_trap, false}};
    if (!with_returns) {
      all.push_back(std::move(entry));
    } else if (const auto& found = returns.at(at)) {
      all.push_back(add_returns(*self, *found, std::move(entry)));
    } else {
      all.push_back(std::unexpected(Refused{-EOPNOTSUPP, found.error().reason}));
    }
  }
  return all;
}

}  // namespace spile::api
