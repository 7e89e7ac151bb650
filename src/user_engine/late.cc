#include "user_engine/late.h"

#include <algorithm>
#include <filesystem>

#include "os/process.h"

namespace spile::user_engine {

namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(10);
/// A look takes at most one part in so many of the tracer's time.
constexpr int kShareOfTime = 50;
/// Each takes a mapping and some memory until the end of the trace.
constexpr size_t kMaxExtensions = 64;

/// The lines of maps that are files' code: what is loaded. Others change all the time.
std::string lines_of_code(const std::string& maps) {
  std::string code;
  for (size_t at = 0; at < maps.size();) {
    const size_t end = std::min(maps.find('\n', at), maps.size());
    const std::string_view line(maps.data() + at, end - at);
    const size_t permissions = line.find(' ');
    const bool is_code = permissions != std::string_view::npos && line.size() > permissions + 3 &&
                         line[permissions + 3] == 'x';
    if (is_code && line.find(" /") != std::string_view::npos &&
        line.find("/memfd:spile-") == std::string_view::npos)
      code.append(line).append("\n");
    at = end + 1;
  }
  return code;
}

bool is_mapped(const std::vector<os::MapEntry>& maps, const PatchedSite& site) {
  const target::Module& module = site.planned->image->module();
  const TargetAddr at = site.planned->plan.site;
  return std::ranges::any_of(maps, [&](const os::MapEntry& m) {
    return m.contains(at) && m.inode == module.inode && m.device == module.device;
  });
}

/// Where our jump was the file's bytes are again.
bool is_original(const target::Target& target, const PatchedSite& site) {
  const patch::Edit& edit = site.edits.back();
  std::vector<uint8_t> now(edit.before.size());
  return target.memory().read(edit.at, now) && std::ranges::equal(now, edit.before);
}

/// The modules of an attachment's sites that are not there any more, or are there anew: one site
/// tells, since all go together.
std::set<ModuleIdentity> find_unloaded(const Attachment& attachment,
                                       const std::vector<os::MapEntry>& maps) {
  std::set<ModuleIdentity> looked_at, unloaded;
  for (const PatchedSite& site : attachment.sites) {
    const ModuleIdentity module = identity_of(site.planned->image->module());
    if (!looked_at.insert(module).second) continue;
    if (!is_mapped(maps, site) || is_original(*attachment.target, site)) unloaded.insert(module);
  }
  return unloaded;
}

/// The counters have gone with the library's data.
void forget_semaphores(Attachment& attachment, TargetAddr site) {
  abi::Journal& journal = attachment.region.journal_untrusted();
  for (size_t i = 0; i < attachment.semaphores.size(); i++) {
    if (attachment.semaphores[i].site != site) continue;
    attachment.semaphores[i].state = abi::SemaphoreState::kLowered;
    journal.semaphores[i].state = abi::SemaphoreState::kLowered;
  }
}

std::string name_of(const ModuleIdentity& identity, const std::vector<target::Module>& modules) {
  for (const target::Module& m : modules) {
    if (identity_of(m) == identity) return m.path;
  }
  return "a library";
}

}  // namespace

// ---- entries of the site table
// -----------------------------------------------------------------------------------

std::optional<uint32_t> SiteSlots::take() {
  if (free_.empty()) return used_ == capacity_ ? std::nullopt : std::optional(used_++);
  const uint32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

// ---- looking
// -----------------------------------------------------------------------------------------------------

void set_aside_unloaded(Attachment& attachment) {
  auto maps = attachment.target->maps();
  if (!maps || maps->empty()) return;
  const auto unloaded = find_unloaded(attachment, *maps);
  if (unloaded.empty()) return;
  std::vector<PatchedSite> stay;
  for (PatchedSite& site : attachment.sites) {
    bool is_gone = unloaded.contains(identity_of(site.planned->image->module()));
    if (is_gone) forget_semaphores(attachment, site.edits.back().at);
    (is_gone ? attachment.unloaded : stay).push_back(std::move(site));
  }
  attachment.sites = std::move(stay);
  for (const ModuleIdentity& module : unloaded) attachment.modules.erase(module);
}

/// Where a file is awaited, or one that a probe is in may be unloaded. The program, its C library
/// and its loader stay.
bool LateLibraries::may_change(const Attachment& attachment) const {
  if (!attachment.plan->absent.empty()) return true;
  return std::ranges::any_of(attachment.sites, [](const PatchedSite& site) {
    const target::Module& m = site.planned->image->module();
    const std::string name = std::filesystem::path(m.path).filename();
    return !m.main_program && !m.vdso && !name.starts_with("libc.so") && !name.starts_with("ld-");
  });
}

void LateLibraries::look(Attachment& attachment, const AttachContext& context) {
  const auto began = Clock::now();
  if (began < next_ || gave_up_ || !attachment.target->alive()) return;
  if (!is_worth_it_) is_worth_it_ = may_change(attachment);
  if (!*is_worth_it_) return;
  auto tid = attachment.target->live_thread();
  auto text = tid ? os::read_file(fmt::format("/proc/{}/maps", *tid)) : Result<std::string>();
  if (!tid || !text) return;
  std::string code = lines_of_code(*text);
  // A library that came back to its place changes no line.
  if (code != code_ || any_came_back(attachment)) {
    set_aside_unloaded(attachment);
    choose_witnesses(attachment);
    code_ = std::move(code);
    settled_ = false;
  } else if (!settled_) {
    // The same for a whole look: its loader has come past its code.
    settled_ = true;
    follow(attachment, context);
    choose_witnesses(attachment);
  }
  const auto took = Clock::now() - began;
  next_ = Clock::now() + std::max<Clock::duration>(kLookEvery, took * kShareOfTime);
}

void LateLibraries::choose_witnesses(const Attachment& attachment) {
  std::set<ModuleIdentity> seen;
  witnesses_.clear();
  for (const PatchedSite& site : attachment.sites) {
    if (seen.insert(identity_of(site.planned->image->module())).second)
      witnesses_.push_back({site.edits.back().at, site.edits.back().before});
  }
}

bool LateLibraries::any_came_back(const Attachment& attachment) const {
  return std::ranges::any_of(witnesses_, [&](const Witness& witness) {
    std::vector<uint8_t> now(witness.before.size());
    return attachment.target->memory().read(witness.at, now) &&
           std::ranges::equal(now, witness.before);
  });
}

void LateLibraries::follow(Attachment& attachment, const AttachContext& context) {
  auto modules = attachment.target->modules();
  if (!modules) return;
  std::set<ModuleIdentity> all, fresh;
  for (const target::Module& m : *modules) all.insert(identity_of(m));
  std::ranges::set_difference(all, attachment.modules, std::inserter(fresh, fresh.end()));
  attachment.modules = all;
  if (fresh.empty()) return;
  if (extensions_ == kMaxExtensions) {
    gave_up_ = true;
    warnings_.push_back(fmt::format(
        "process {}: {} times a library was loaded again; those loaded from now on are not probed",
        attachment.pid, kMaxExtensions));
    return;
  }
  const size_t refused = attachment.refused.size();
  auto done = extend(attachment, fresh, context);
  if (done) extensions_ += *done ? 1 : 0;
  tell_refusals(attachment, refused);
  if (done || done.error().code == ErrorCode::kTargetGone) return;
  if (done.error().code == ErrorCode::kBusy) {
    // Somebody stood in the way: at the next look again.
    for (const ModuleIdentity& module : fresh) attachment.modules.erase(module);
    settled_ = false;
    return;
  }
  warnings_.push_back(fmt::format("process {}: {}, loaded later, is not probed: {}", attachment.pid,
                                  name_of(*fresh.begin(), *modules), done.error().message));
}

void LateLibraries::tell_refusals(const Attachment& attachment, size_t first) {
  constexpr size_t kShown = 10;
  for (size_t i = first; i < std::min(attachment.refused.size(), first + kShown); i++) {
    const engine::SiteReport& site = attachment.refused[i];
    warnings_.push_back(fmt::format("not probed: {}: {}", engine::place_of(site), site.reason));
  }
}

}  // namespace spile::user_engine
