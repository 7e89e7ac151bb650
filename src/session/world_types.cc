// What the kernel's type information says, as lang::World wants it.
#include "session/world.h"
#include "symbols/glob.h"

namespace spile::session {

using kernel_engine::TypedArgument;
using kernel_engine::TypedFunction;
using lang::EventField;
using lang::TypedEvent;

namespace {

EventField field_of(const TypedArgument& argument) {
  using Shape = TypedArgument::Shape;
  return {.name = argument.name,
          .type = argument.type,
          .offset = argument.offset,
          .size = argument.size,
          .is_signed = argument.is_signed,
          .shape = argument.shape == Shape::kInt       ? EventField::Shape::kInt
                   : argument.shape == Shape::kPointer ? EventField::Shape::kPointer
                                                       : EventField::Shape::kOther};
}

lang::Tracepoint event_of(const TypedFunction& function, bool with_result) {
  lang::Tracepoint event{.category = function.module,
                         .event = function.name,
                         .record_size = function.context_size,
                         .fields = {}};
  for (const TypedArgument& argument : function.arguments)
    event.fields.push_back(field_of(argument));
  if (with_result && function.result) {
    event.fields.push_back(field_of(*function.result));
    event.record_size += 8;
  }
  return event;
}

}  // namespace

Result<std::vector<lang::Tracepoint>> MachineWorld::typed_events(TypedEvent kind,
                                                                 std::string_view module,
                                                                 std::string_view name) {
  if (symbols::has_wildcard(module))
    return fail(ErrorCode::kUnsupported, "a pattern for the module is not built yet");
  Result<std::vector<TypedFunction>> found;
  switch (kind) {
    case TypedEvent::kRawTracepoint: found = types_->raw_tracepoints(module, name); break;
    case TypedEvent::kIterator: found = types_->iterators(name); break;
    default: found = types_->functions(module, name);
  }
  if (!found) return forward(found);
  std::vector<lang::Tracepoint> events;
  for (const TypedFunction& function : *found)
    events.push_back(event_of(function, kind == TypedEvent::kFunctionExit));
  return events;
}

}  // namespace spile::session
