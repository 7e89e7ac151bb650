// Numbers that stand for something people have names for.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace spile::output {

/// "10.0.0.1", "::1": `family` 2 or 10, 16 bytes of address of which IPv4 uses four. "" for another
/// family.
std::string inet_text(uint64_t family, std::span<const uint8_t> address);
/// "A6:B2:01:00:00:0F".
std::string mac_text(std::span<const uint8_t> bytes);
/// strerror(), signal_name(), username(): what `number` is called there, or the number.
std::string named_text(std::string_view names, int64_t number);
/// strftime() with microseconds for %f, milliseconds for %l, nanoseconds for %k. `real_ns`: since
/// 1970.
std::string timestamp_text(std::string_view format, uint64_t real_ns);
/// CLOCK_MONOTONIC as nanoseconds since 1970, by the clocks of this moment.
uint64_t real_time_of(uint64_t monotonic_ns);

}  // namespace spile::output
