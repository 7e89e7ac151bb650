#include "lang/syntax/attach_point.h"

#include <algorithm>
#include <array>
#include <optional>

#include "lang/syntax/lexer.h"

namespace spile::lang {
namespace {

using ast::AttachPart;
using ast::AttachPoint;
using ast::ProbeType;

struct ProbeName {
  std::string_view name;
  ProbeType type;
  bool takes_path;
  bool is_alias;
};

/// Canonical names first. Compared without case, but `u` and `U` are told apart by their exact
/// spelling first.
constexpr auto kProbeNames = std::to_array<ProbeName>({
    {"BEGIN", ProbeType::kBegin, false, false},
    {"END", ProbeType::kEnd, false, false},
    {"uprobe", ProbeType::kUprobe, true, false},
    {"uretprobe", ProbeType::kUretprobe, true, false},
    {"usdt", ProbeType::kUsdt, true, false},
    {"tracepoint", ProbeType::kTracepoint, false, false},
    {"kprobe", ProbeType::kKprobe, false, false},
    {"kretprobe", ProbeType::kKretprobe, false, false},
    {"fentry", ProbeType::kFentry, false, false},
    {"fexit", ProbeType::kFexit, false, false},
    {"rawtracepoint", ProbeType::kRawTracepoint, false, false},
    {"interval", ProbeType::kInterval, false, false},
    {"profile", ProbeType::kProfile, false, false},
    {"software", ProbeType::kSoftware, false, false},
    {"hardware", ProbeType::kHardware, false, false},
    {"watchpoint", ProbeType::kWatchpoint, false, false},
    {"asyncwatchpoint", ProbeType::kAsyncWatchpoint, false, false},
    {"iter", ProbeType::kIter, true, false},
    {"self", ProbeType::kSelf, false, false},
    {"test", ProbeType::kTest, false, false},
    {"bench", ProbeType::kBench, false, false},
    {"u", ProbeType::kUprobe, true, true},
    {"ur", ProbeType::kUretprobe, true, true},
    {"U", ProbeType::kUsdt, true, true},
    {"t", ProbeType::kTracepoint, false, true},
    {"k", ProbeType::kKprobe, false, true},
    {"kr", ProbeType::kKretprobe, false, true},
    {"f", ProbeType::kFentry, false, true},
    {"fr", ProbeType::kFexit, false, true},
    {"kfunc", ProbeType::kFentry, false, true},
    {"kretfunc", ProbeType::kFexit, false, true},
    {"rt", ProbeType::kRawTracepoint, false, true},
    {"i", ProbeType::kInterval, false, true},
    {"p", ProbeType::kProfile, false, true},
    {"s", ProbeType::kSoftware, false, true},
    {"h", ProbeType::kHardware, false, true},
    {"w", ProbeType::kWatchpoint, false, true},
    {"aw", ProbeType::kAsyncWatchpoint, false, true},
    {"it", ProbeType::kIter, true, true},
});

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool same_name(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](char x, char y) { return lower(x) == lower(y); });
}

/// '*' stands for any text; linear in practice, since only the last star is retried.
bool matches(std::string_view pattern, std::string_view name) {
  size_t p = 0, n = 0, star = std::string_view::npos, retry = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      retry = n;
    } else if (p < pattern.size() && lower(pattern[p]) == lower(name[n])) {
      p++, n++;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++retry;
    } else {
      return false;
    }
  }
  return std::all_of(pattern.begin() + static_cast<ptrdiff_t>(p), pattern.end(),
                     [](char c) { return c == '*'; });
}

std::vector<const ProbeName*> find_probes(std::string_view provider) {
  std::vector<const ProbeName*> found;
  if (provider.find('*') != std::string_view::npos) {
    for (const ProbeName& probe : kProbeNames) {
      if (!probe.is_alias && matches(provider, probe.name)) found.push_back(&probe);
    }
    return found;
  }
  for (const ProbeName& probe : kProbeNames) {
    if (probe.name == provider) return {&probe};
  }
  for (const ProbeName& probe : kProbeNames) {
    if (same_name(probe.name, provider)) return {&probe};
  }
  return found;
}

/// `last` is what attach_quote_end() gave: a closing quote, unless a backslash took it.
bool is_quote_closed(std::string_view text, uint32_t begin, uint32_t last) {
  uint32_t at = begin + 1;
  while (at < last) at += text[at] == '\\' ? 2 : 1;
  return last != begin && at == last && text[last] == '"';
}

// ---- splitting
// ------------------------------------------------------------------------------------------------------------

class Splitter {
 public:
  Splitter(std::string_view raw,
           Span span,
           const std::vector<std::string>& positional,
           Diagnostics& diagnostics)
      : raw_(raw), span_(span), positional_(positional), diagnostics_(diagnostics) {}

  /// Parts between colons, the provider first. Empty after a reported fault.
  std::vector<AttachPart> split();

 private:
  Span here(uint32_t begin, uint32_t end) const { return {span_.begin + begin, span_.begin + end}; }
  bool take_quoted(AttachPart& part);
  bool take_positional(AttachPart& part);

  std::string_view raw_;
  Span span_;
  const std::vector<std::string>& positional_;
  Diagnostics& diagnostics_;
  uint32_t at_ = 0;
};

std::vector<AttachPart> Splitter::split() {
  std::vector<AttachPart> parts(1);
  parts.back().span = here(0, 0);
  while (at_ < raw_.size()) {
    AttachPart& part = parts.back();
    const char c = raw_[at_];
    if (c == ':') {
      at_++;
      parts.emplace_back().span = here(at_, at_);
      continue;
    }
    if (c == '"') {
      if (!take_quoted(part)) return {};
    } else if (c == '$' && at_ + 1 < raw_.size() && raw_[at_ + 1] >= '0' && raw_[at_ + 1] <= '9') {
      if (!take_positional(part)) return {};
    } else {
      part.text += c;
      at_++;
    }
    part.span.end = span_.begin + at_;
  }
  return parts;
}

/// "...": a backslash takes the next byte as it is.
bool Splitter::take_quoted(AttachPart& part) {
  const uint32_t begin = at_;
  const uint32_t last = attach_quote_end(raw_, at_);
  if (!is_quote_closed(raw_, begin, last)) {
    diagnostics_.error(here(begin, last + 1), "this quote is never closed");
    return false;
  }
  for (at_ = begin + 1; at_ < last; at_++) {
    if (raw_[at_] == '\\' && at_ + 1 < last) at_++;
    part.text += raw_[at_];
  }
  at_ = last + 1;
  part.is_quoted = true;
  return true;
}

bool Splitter::take_positional(AttachPart& part) {
  constexpr size_t kMostDigits = 6;
  const uint32_t begin = at_++;
  size_t index = 0, digits = 0;
  for (; at_ < raw_.size() && raw_[at_] >= '0' && raw_[at_] <= '9'; at_++) {
    if (++digits <= kMostDigits) index = index * 10 + static_cast<size_t>(raw_[at_] - '0');
  }
  if (index == 0 || digits > kMostDigits || index > positional_.size()) {
    diagnostics_
        .error(here(begin, at_), "the probe needs {}, but {} parameters were given",
               raw_.substr(begin, at_ - begin), positional_.size())
        .with_hint("give it after the script");
    return false;
  }
  part.text += positional_[index - 1];
  return true;
}

// ---- what the parts mean
// ----------------------------------------------------------------------------------------------------

std::optional<uint64_t> number_of(const AttachPart& part) {
  if (part.is_quoted) return std::nullopt;
  const auto number = read_number(part.text);
  if (!number || number->is_duration) return std::nullopt;
  return number->value;
}

/// Fills the typed fields of one attach point from its parts.
class Reader {
 public:
  Reader(AttachPoint& point, Diagnostics& diagnostics)
      : point_(point), parts_(point.parts), diagnostics_(diagnostics) {}

  bool read();

 private:
  bool wrong_form(std::string_view form);
  bool fault(const AttachPart& part, std::string message);
  bool at_most(size_t count, std::string_view form) {
    return parts_.size() <= count || wrong_form(form);
  }
  bool no_empty_parts(std::string_view form);

  bool uprobe();
  bool source_line(std::string_view path, std::string_view file);
  bool usdt();
  bool kernel_function();
  bool fentry();
  bool function(const AttachPart& part, bool takes_offset);
  bool tracepoint();
  bool raw_tracepoint();
  bool timer();
  bool timer_unit(const AttachPart& unit, const AttachPart& amount);
  bool perf_event();
  bool watchpoint();
  bool watched_argument();
  bool iter();
  bool self();
  bool named();

  AttachPoint& point_;
  const std::vector<AttachPart>& parts_;
  Diagnostics& diagnostics_;
};

bool Reader::wrong_form(std::string_view form) {
  diagnostics_.error(point_.span, "this is not how {} is written", ast::to_string(point_.type))
      .with_hint("it is {}", form);
  return false;
}

bool Reader::fault(const AttachPart& part, std::string message) {
  Span span = part.span;
  if (span.size() == 0) span = point_.span;
  diagnostics_.error(span, "{}", message);
  return false;
}

bool Reader::no_empty_parts(std::string_view form) {
  const bool has_empty =
      std::ranges::any_of(parts_, [](const AttachPart& part) { return part.text.empty(); });
  return !has_empty || wrong_form(form);
}

bool Reader::read() {
  switch (point_.type) {
    case ProbeType::kBegin:
    case ProbeType::kEnd: return at_most(0, point_.type == ProbeType::kBegin ? "BEGIN" : "END");
    case ProbeType::kUprobe:
    case ProbeType::kUretprobe: return uprobe();
    case ProbeType::kUsdt: return usdt();
    case ProbeType::kTracepoint: return tracepoint();
    case ProbeType::kKprobe:
    case ProbeType::kKretprobe: return kernel_function();
    case ProbeType::kFentry:
    case ProbeType::kFexit: return fentry();
    case ProbeType::kRawTracepoint: return raw_tracepoint();
    case ProbeType::kInterval:
    case ProbeType::kProfile: return timer();
    case ProbeType::kSoftware:
    case ProbeType::kHardware: return perf_event();
    case ProbeType::kWatchpoint:
    case ProbeType::kAsyncWatchpoint: return watchpoint();
    case ProbeType::kIter: return iter();
    case ProbeType::kSelf: return self();
    case ProbeType::kTest:
    case ProbeType::kBench: return named();
  }
  return false;
}

/// `function`, `function+offset`, or a number: an address.
bool Reader::function(const AttachPart& part, bool takes_offset) {
  if (const auto address = number_of(part)) {
    if (!takes_offset)
      return fault(part, fmt::format("{} takes no address", ast::to_string(point_.type)));
    point_.address = *address;
    return true;
  }
  const size_t plus = part.text.rfind('+');
  if (plus != std::string::npos && plus != 0) {
    const auto offset = read_number(std::string_view(part.text).substr(plus + 1));
    if (offset && !offset->is_duration) {
      if (!takes_offset && offset->value != 0)
        return fault(part, fmt::format("{} takes no offset: it fires when the function returns",
                                       ast::to_string(point_.type)));
      point_.function = part.text.substr(0, plus);
      point_.offset = offset->value;
      return true;
    }
    if (!part.is_quoted)
      return fault(part, fmt::format("'{}' is not an offset", part.text.substr(plus + 1)));
  }
  point_.function = part.text;
  return true;
}

bool Reader::uprobe() {
  constexpr std::string_view kForm =
      "PATH:FUNCTION, PATH:FUNCTION+OFFSET, PATH:ADDRESS, PATH:cpp:\"NAME\" or PATH@FILE:LINE "
      "after the first ':'";
  if (parts_.empty() || !no_empty_parts(kForm)) return parts_.empty() ? wrong_form(kForm) : false;
  const bool takes_offset = point_.type == ProbeType::kUprobe;
  const std::string& first = parts_[0].text;
  const size_t at = parts_[0].is_quoted ? std::string::npos : first.rfind('@');
  if (at != std::string::npos && parts_.size() >= 2 && parts_.size() <= 3 && number_of(parts_[1]))
    return source_line(first.substr(0, at), first.substr(at + 1));
  if (parts_.size() == 1) return function(parts_[0], takes_offset);
  point_.target = first;
  if (parts_.size() == 2) return function(parts_[1], takes_offset);
  if (parts_.size() == 3 && parts_[1].text == "cpp") {
    point_.is_cpp = true;
    return function(parts_[2], takes_offset);
  }
  diagnostics_.error(point_.span, "this {} has too many parts", ast::to_string(point_.type))
      .with_hint("a name with ':' in it must be quoted: {}:{}:cpp:\"ns::function\"",
                 ast::to_string(point_.type), first);
  return false;
}

/// uprobe:PATH@file:line[:column]
bool Reader::source_line(std::string_view path, std::string_view file) {
  if (path.empty() || file.empty()) return wrong_form("PATH@FILE:LINE or PATH@FILE:LINE:COLUMN");
  point_.target = path;
  point_.source_file = file;
  const auto read = [&](const AttachPart& part, uint32_t& into) {
    const auto number = number_of(part);
    if (!number || *number == 0 || *number > UINT32_MAX)
      return fault(part, "lines and columns count from 1");
    into = static_cast<uint32_t>(*number);
    return true;
  };
  if (!read(parts_[1], point_.source_line)) return false;
  return parts_.size() == 2 || read(parts_[2], point_.source_column);
}

bool Reader::usdt() {
  constexpr std::string_view kForm = "usdt:PATH:NAME or usdt:PATH:NAMESPACE:NAME";
  if (parts_.empty() || parts_.size() > 3) return wrong_form(kForm);
  if (!no_empty_parts(kForm)) return false;
  point_.function = parts_.back().text;
  if (parts_.size() >= 2) point_.target = parts_[0].text;
  if (parts_.size() == 3) point_.usdt_namespace = parts_[1].text;
  return true;
}

bool Reader::kernel_function() {
  const bool is_entry = point_.type == ProbeType::kKprobe;
  const std::string_view form =
      is_entry ? "kprobe:FUNCTION, kprobe:FUNCTION+OFFSET or kprobe:MODULE:FUNCTION"
               : "kretprobe:FUNCTION or kretprobe:MODULE:FUNCTION";
  if (parts_.empty() || parts_.size() > 2) return wrong_form(form);
  if (!no_empty_parts(form)) return false;
  if (parts_.size() == 2) point_.target = parts_[0].text;
  return function(parts_.back(), is_entry);
}

bool Reader::fentry() {
  constexpr std::string_view kForm =
      "FUNCTION, MODULE:FUNCTION or bpf:ID:PROGRAM after the first ':'";
  if (parts_.empty() || parts_.size() > 3) return wrong_form(kForm);
  if (!no_empty_parts(kForm)) return false;
  if (parts_.size() == 3 && parts_[0].text != "bpf") return wrong_form(kForm);
  if (parts_.size() >= 2) point_.target = parts_[0].text;
  if (parts_.size() == 3) point_.bpf_id = parts_[1].text;
  point_.function = parts_.back().text;
  return true;
}

bool Reader::tracepoint() {
  constexpr std::string_view kForm = "tracepoint:CATEGORY:EVENT";
  if (parts_.empty() || parts_.size() > 2) return wrong_form(kForm);
  if (!no_empty_parts(kForm)) return false;
  const bool is_search = parts_.size() == 1 && parts_[0].text.find('*') != std::string::npos;
  if (parts_.size() == 1 && !is_search) return wrong_form(kForm);
  point_.target = parts_.size() == 2 ? parts_[0].text : "*";
  point_.function = parts_.back().text;
  return true;
}

bool Reader::raw_tracepoint() {
  constexpr std::string_view kForm = "rawtracepoint:EVENT or rawtracepoint:MODULE:EVENT";
  if (parts_.empty() || parts_.size() > 2) return wrong_form(kForm);
  if (!no_empty_parts(kForm)) return false;
  if (parts_.size() == 2) point_.target = parts_[0].text;
  point_.function = parts_.back().text;
  return true;
}

/// `1s`, `500ms`, a number of nanoseconds, or `s:1`, `ms:500`, `us:10`, `hz:99`.
bool Reader::timer() {
  constexpr std::string_view kForm = "s:1, ms:100, us:100, hz:99, 1s or 100ms after the first ':'";
  if (parts_.empty() || parts_.size() > 2) return wrong_form(kForm);
  if (!no_empty_parts(kForm)) return false;
  if (parts_.size() == 2) return timer_unit(parts_[0], parts_[1]);
  const auto period = read_number(parts_[0].text);
  if (!period) return wrong_form(kForm);
  constexpr uint64_t kShortestNs = 1000;
  if (period->value < kShortestNs) return fault(parts_[0], "the shortest period is 1000 ns");
  point_.period_ns = period->value;
  return true;
}

bool Reader::timer_unit(const AttachPart& unit, const AttachPart& amount_part) {
  constexpr uint64_t kSecond = 1'000'000'000;
  const auto amount = number_of(amount_part);
  if (!amount || *amount == 0)
    return fault(amount_part, fmt::format("'{}' is not a positive number", amount_part.text));
  if (unit.text == "hz") {
    if (*amount > kSecond / 1000) return fault(amount_part, "the highest frequency is 1000000 hz");
    point_.frequency_hz = *amount;
    point_.period_ns = kSecond / *amount;
    return true;
  }
  uint64_t unit_ns = 0;
  if (unit.text == "s") unit_ns = kSecond;
  if (unit.text == "ms") unit_ns = 1'000'000;
  if (unit.text == "us") unit_ns = 1'000;
  if (unit_ns == 0)
    return fault(unit, fmt::format("'{}' is not a unit: use s, ms, us or hz", unit.text));
  if (__builtin_mul_overflow(*amount, unit_ns, &point_.period_ns))
    return fault(amount_part, "this period is too long");
  return true;
}

bool Reader::perf_event() {
  const std::string form = fmt::format("{0}:EVENT or {0}:EVENT:COUNT", ast::to_string(point_.type));
  if (parts_.empty() || parts_.size() > 2) return wrong_form(form);
  if (parts_[0].text.empty()) return wrong_form(form);
  point_.function = parts_[0].text;
  if (parts_.size() == 1 || parts_[1].text.empty()) return true;
  const auto count = number_of(parts_[1]);
  if (!count || *count == 0)
    return fault(parts_[1], fmt::format("'{}' is not a positive number", parts_[1].text));
  point_.count = *count;
  return true;
}

/// FUNCTION+argN: the address is an argument of the function.
bool Reader::watched_argument() {
  const std::string& text = parts_[0].text;
  const size_t plus = text.rfind("+arg");
  if (plus == std::string::npos || plus == 0) return false;
  const auto index = read_number(std::string_view(text).substr(plus + 4));
  if (!index || index->is_duration) return false;
  point_.function = text.substr(0, plus);
  return true;
}

bool Reader::watchpoint() {
  if (parts_.size() != 3)
    return wrong_form(
        "watchpoint:ADDRESS:LENGTH:MODE or watchpoint:FUNCTION+argN:LENGTH:MODE with a mode of r, "
        "w "
        "and x");
  const auto address = number_of(parts_[0]), length = number_of(parts_[1]);
  if (!address && !watched_argument())
    return fault(parts_[0], fmt::format("'{}' is not an address", parts_[0].text));
  if (!length || (*length != 1 && *length != 2 && *length != 4 && *length != 8))
    return fault(parts_[1], "a watched length is 1, 2, 4 or 8");
  const std::string& mode = parts_[2].text;
  if (mode.empty() || mode.find_first_not_of("rwx") != std::string::npos)
    return fault(parts_[2], "a mode is made of r, w and x");
  point_.address = address;
  point_.watch_length = static_cast<uint32_t>(*length);
  point_.watch_mode = mode;
  return true;
}

bool Reader::iter() {
  constexpr std::string_view kForm = "iter:WHAT or iter:WHAT:PIN";
  if (parts_.empty() || parts_.size() > 2) return wrong_form(kForm);
  if (!no_empty_parts(kForm)) return false;
  point_.function = parts_[0].text;
  if (parts_.size() == 2) point_.pin = parts_[1].text;
  return true;
}

bool Reader::self() {
  if (parts_.size() != 2 || parts_[0].text != "signal" || parts_[1].text.empty())
    return wrong_form("self:signal:SIGUSR1");
  point_.function = parts_[1].text;
  return true;
}

bool Reader::named() {
  if (parts_.size() != 1 || parts_[0].text.empty())
    return wrong_form(fmt::format("{}:NAME", ast::to_string(point_.type)));
  point_.function = parts_[0].text;
  return true;
}

// ---- putting it together
// ------------------------------------------------------------------------------------------------------

void report_unknown(std::string_view provider, Span span, Diagnostics& diagnostics) {
  std::vector<std::string_view> names;
  for (const ProbeName& probe : kProbeNames) {
    if (!probe.is_alias) names.push_back(probe.name);
  }
  if (provider.empty()) {
    diagnostics.error(span, "a probe is expected here")
        .with_hint("for example uprobe:libc:malloc, or BEGIN");
    return;
  }
  Diagnostic& error = diagnostics.error(span, "unknown probe type '{}'", provider);
  if (const std::string_view near = nearest(provider, names); !near.empty()) {
    error.with_hint("did you mean '{}'?", near);
  } else if (provider.find('*') != std::string_view::npos) {
    error.with_hint("no probe type matches this pattern");
  }
}

AttachPoint make_point(const ProbeName& probe, const std::vector<AttachPart>& parts, Span span) {
  AttachPoint point;
  point.span = span;
  point.type = probe.type;
  point.type_span = parts[0].span;
  point.parts.assign(parts.begin() + 1, parts.end());
  point.text = ast::to_string(probe.type);
  for (const AttachPart& part : point.parts) point.text += ":" + part.text;
  return point;
}

}  // namespace

bool takes_path(std::string_view provider) {
  if (provider.starts_with('!')) provider.remove_prefix(1);
  const auto found = find_probes(provider);
  return std::ranges::any_of(found, [](const ProbeName* probe) { return probe->takes_path; });
}

uint32_t attach_quote_end(std::string_view text, uint32_t at) {
  const uint32_t begin = at++;
  for (; at < text.size() && text[at] != '\n'; at++) {
    if (text[at] == '"') return at;
    if (text[at] == '\\' && at + 1 < text.size() && text[at + 1] != '\n') at++;
  }
  return std::max(begin, static_cast<uint32_t>(std::min<size_t>(at, text.size())) - 1);
}

std::vector<AttachPoint> read_attach_point(std::string_view raw,
                                           Span span,
                                           const std::vector<std::string>& positional,
                                           Diagnostics& diagnostics) {
  const bool is_excluded = raw.starts_with('!');
  if (is_excluded) {
    raw.remove_prefix(1);
    span.begin++;
  }
  const auto parts = Splitter(raw, span, positional, diagnostics).split();
  if (parts.empty()) return {};
  const auto probes = find_probes(parts[0].text);
  if (probes.empty()) {
    report_unknown(parts[0].text, parts[0].span.size() != 0 ? parts[0].span : span, diagnostics);
    return {};
  }
  std::vector<AttachPoint> points;
  Diagnostics refused;  // of a wildcard: types that do not take these parts are left out
  for (const ProbeName* probe : probes) {
    AttachPoint point = make_point(*probe, parts, span);
    point.is_excluded = is_excluded;
    if (Reader(point, probes.size() == 1 ? diagnostics : refused).read())
      points.push_back(std::move(point));
  }
  if (points.empty() && probes.size() > 1)
    diagnostics.error(span, "no probe type that matches '{}' takes these parts", parts[0].text);
  return points;
}

}  // namespace spile::lang
