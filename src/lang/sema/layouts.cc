// Splitting of instances: one program for all probes whose context keeps what the clause reads at
// the same places.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "lang/sema/probes.h"

namespace spile::lang {

namespace {

/// What the compiled code of a clause depends on: where the fields it uses are.
std::string layout_of(const Instance& instance, const Tracepoint& event) {
  std::string layout;
  for (const std::string& name : instance.used_fields) {
    auto field = std::ranges::find(event.fields, name, &EventField::name);
    if (field == event.fields.end()) {
      layout += "-;";
    } else {
      layout += fmt::format("{},{},{},{};", field->offset, field->size, field->is_signed,
                            static_cast<int>(field->shape));
      if (field->shape == EventField::Shape::kPointer) layout += field->type;
      // What a pointer points to decides how it is followed.
      if (bundle::is_typed(instance.context.probe)) layout += field->type + ";";
    }
  }
  if (bundle::is_typed(instance.context.probe)) {
    for (uint32_t index : instance.used_arguments)
      layout += (index + 1) * 8 <= event.record_size ? "argument;" : "-;";
  }
  return layout;
}

std::string layout_of(const UsdtArgument& a) {
  return fmt::format("{},{},{},{},{},{},{},{};", static_cast<int>(a.place), a.size, a.is_signed,
                     a.base, a.index, a.scale, a.from_site, a.number);
}

/// The same for the arguments of a static tracepoint: which ones the names mean, then where they
/// are.
std::string layout_of(const Instance& instance, const UsdtSite& site) {
  std::string layout;
  for (const std::string& name : instance.used_fields) {
    const auto field = std::ranges::find(site.fields, name, &UsdtField::name);
    layout += field == site.fields.end()
                  ? "-;"
                  : fmt::format("{},{}", field->type,
                                layout_of(site.arguments[field - site.fields.begin()]));
  }
  for (uint32_t index : instance.used_arguments) {
    if (index >= site.arguments.size()) {
      layout += "-;";
      continue;
    }
    layout += layout_of(site.arguments[index]);
  }
  return layout;
}

/// An instance without its probes.
Instance part_of(const Instance& whole) {
  return {.clause = whole.clause,
          .context = whole.context,
          .used_fields = whole.used_fields,
          .used_arguments = whole.used_arguments,
          .variables = whole.variables,
          .is_declared = whole.is_declared,
          .hoisted = whole.hoisted};
}

void split_events(Instance& instance, std::vector<Instance>& all) {
  std::map<std::string, size_t> by_layout;
  for (size_t i = 0; i < instance.events.size(); ++i) {
    Tracepoint& event = instance.events[i];
    auto [found, is_new] = by_layout.try_emplace(layout_of(instance, event), all.size());
    if (is_new) {
      all.push_back(part_of(instance));
      all.back().context.size_bytes = event.record_size;
    }
    Instance& part = all[found->second];
    part.context.size_bytes = std::min(part.context.size_bytes, event.record_size);
    part.probes.push_back(instance.probes[i]);
    part.events.push_back(std::move(event));
  }
}

void split_usdt(Instance& instance, std::vector<Instance>& all) {
  std::map<std::string, size_t> by_layout;
  for (size_t i = 0; i < instance.usdt.size(); ++i) {
    UsdtSite& site = instance.usdt[i];
    auto [found, is_new] = by_layout.try_emplace(layout_of(instance, site), all.size());
    if (is_new) all.push_back(part_of(instance));
    all[found->second].probes.push_back(instance.probes[i]);
    all[found->second].usdt.push_back(std::move(site));
  }
}

}  // namespace

std::vector<Instance> split_by_layout(std::vector<Instance> instances) {
  std::vector<Instance> all;
  for (Instance& instance : instances) {
    if (!instance.events.empty()) {
      split_events(instance, all);
    } else if (!instance.usdt.empty()) {
      split_usdt(instance, all);
    } else {
      all.push_back(std::move(instance));
    }
  }
  return all;
}

}  // namespace spile::lang
