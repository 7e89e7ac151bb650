#include "api/self.h"

#include <link.h>
#include <unistd.h>

#include <algorithm>

#include "symbols/glob.h"

namespace spile::api {

using user_engine::ModuleImage;

namespace {

/// Counts libraries that came and went.
unsigned long long count_loads() {
  unsigned long long count = 0;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        *static_cast<unsigned long long*>(to) = info->dlpi_adds + info->dlpi_subs;
        return 1;
      },
      &count);
  return count;
}

std::pair<std::string, std::string> split(const std::string& name) {
  const size_t colon = name.rfind(':');
  // C++ names have two of them.
  const bool has_library = colon != std::string::npos && (colon == 0 || name[colon - 1] != ':');
  if (!has_library) return {"", name};
  return {name.substr(0, colon), name.substr(colon + 1)};
}

std::string base_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

}  // namespace

std::unique_ptr<Self>& Self::instance() {
  static auto* const kSelf = new std::unique_ptr<Self>;
  return *kSelf;
}

Result<Self*> Self::now() {
  std::unique_ptr<Self>& self = instance();
  if (self && self->is_current()) return self.get();
  self.reset();
  std::unique_ptr<Self> made(new Self);
  made->pid_ = ::getpid();
  made->loads_ = count_loads();
  SPILE_TRY_VOID(made->look());
  SPILE_TRY(made->images_, user_engine::ProcessImages::open(*made->target_));
  made->code_ = std::make_unique<user_engine::ProcessCode>(*made->target_, made->images_);
  self = std::move(made);
  return self.get();
}

Result<void> Self::look() {
  if (!target_) {
    SPILE_TRY(target_, target::Target::open_self());
  }
  return {};
}

Result<ModuleImage*> Self::image_of(const target::Module& module) {
  if (!known_.contains(&module)) SPILE_TRY_VOID(look());
  SPILE_TRY(ModuleImage * image, images_.image_of(module));
  known_.insert(&module);
  return image;
}

const ModuleImage* Self::image_at(TargetAddr at) {
  const target::Module* module = images_.module_at(at);
  if (module == nullptr) return nullptr;
  const auto image = image_of(*module);
  return image ? *image : nullptr;
}

void Self::let_go() {
  if (instance()) instance()->target_.reset();
}

bool Self::is_current() const {
  return pid_ == ::getpid() && loads_ == count_loads();
}

std::vector<const target::Module*> Self::modules_named(const std::string& library) const {
  std::vector<const target::Module*> found;
  for (const target::Module& m : images_.modules()) {
    const std::string name = base_name(m.path);
    const bool wanted =
        library.empty() || name == library || m.path == library || name.starts_with(library + ".");
    if (!wanted || m.vdso) continue;
    found.insert(m.main_program ? found.begin() : found.end(), &m);
  }
  return found;
}

Result<std::vector<TargetAddr>> Self::find(const std::string& name) {
  const auto [library, symbol] = split(name);
  for (const target::Module* module : modules_named(library)) {
    auto image = image_of(*module);
    if (!image) continue;
    std::vector<TargetAddr> found;
    for (const symbols::Function* f : (*image)->symbols().find(symbol)) {
      if (f->type == elf::SymbolType::kIfunc)
        return fail(ErrorCode::kUnsupported,
                    "{} is an IFUNC: its symbol is a resolver that runs once; probe the "
                    "implementation by its address",
                    name);
      found.push_back(module->bias.to_target(f->addr));
    }
    std::ranges::sort(found);
    found.erase(std::ranges::unique(found).begin(), found.end());
    if (!found.empty()) return found;
  }
  return fail(ErrorCode::kNotFound, "no loaded module has a function '{}'", name);
}

Result<std::vector<TargetAddr>> Self::match(const std::string& filter, const std::string& except) {
  const auto [library, glob] = split(filter);
  std::vector<TargetAddr> found;
  for (const target::Module* module : modules_named(library)) {
    if (library.empty() && !module->main_program) continue;
    SPILE_TRY(ModuleImage * image, image_of(*module));
    for (const symbols::Function* f : image->symbols().match(glob)) {
      const bool is_entry =
          f->type == elf::SymbolType::kFunction &&
          image->function_start(module->bias.to_target(f->addr)) != ModuleImage::Start::kNone;
      if (is_entry && (except.empty() || !symbols::glob_matches(except, f->name)))
        found.push_back(module->bias.to_target(f->addr));
    }
  }
  std::ranges::sort(found);
  found.erase(std::ranges::unique(found).begin(), found.end());
  if (found.empty()) return fail(ErrorCode::kNotFound, "no function matches '{}'", filter);
  return found;
}

std::string Self::describe(TargetAddr at) {
  const ModuleImage* image = image_at(at);
  if (image == nullptr) return {};
  const auto resolved = image->symbols().resolve(image->module().bias.to_link(at));
  const std::string module = base_name(image->module().path);
  if (!resolved) return fmt::format("{} {}", at, module);
  return fmt::format("{}+{:#x} {}", resolved->function->name, resolved->offset, module);
}

Result<Self::FoundReturns> Self::returns_of(std::span<const TargetAddr> starts) {
  FoundReturns all;
  std::vector<TargetAddr> unknown;
  for (const TargetAddr at : starts) {
    const auto known = plain_returns_.find(at);
    if (known == plain_returns_.end()) {
      unknown.push_back(at);
    } else {
      all.insert(*known);
    }
  }
  if (unknown.empty()) return all;
  SPILE_TRY_VOID(look());
  std::map<const patch::CodeMap*, std::vector<TargetAddr>> by_module;
  for (const TargetAddr at : unknown) by_module[code_->code_at(at)].push_back(at);
  for (const auto& [map, functions] : by_module) {
    if (map == nullptr) {
      const patch::Refusal no_code{patch::RefusalKind::kNoFunction, {}, {}, "no code is there"};
      for (const TargetAddr at : functions) all.emplace(at, std::unexpected(no_code));
      continue;
    }
    patch::ReturnFinder finder(*code_, *map, functions);
    for (const TargetAddr at : functions) {
      const auto& found = all.emplace(at, finder.find(at)).first->second;
      if (found && found->plain) plain_returns_.emplace(at, found);
    }
  }
  return all;
}

}  // namespace spile::api
