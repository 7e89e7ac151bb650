// Lowering of args, argN and retval where the kernel's type information describes the context:
// rawtracepoint, fentry, fexit, iter.
//
// The context is an array of 8-byte words. Numbers are loaded as they are and cut to their type:
// what lies above is whatever was in the register. Pointers are copied out of the context: loaded,
// they would be typed objects to the kernel's verifier, which refuses half of what can be done with
// numbers.
#include "lang/sema/lower.h"

namespace spile::lang {

using bundle::ProbeKind;
using typed::ExprKind;

std::string Lowering::name_of(const Tracepoint& event) const {
  switch (instance_.context.probe) {
    case ProbeKind::kRawTracepoint: return "rawtracepoint:" + event.event;
    case ProbeKind::kFentry: return "fentry:" + event.event;
    case ProbeKind::kFexit: return "fexit:" + event.event;
    case ProbeKind::kIter: return "iter:" + event.event;
    default: return fmt::format("tracepoint:{}:{}", event.category, event.event);
  }
}

/// One word of the context, whatever it is.
Lowering::ExprPtr Lowering::context_word(uint32_t offset, Type type, Span span) {
  ExprPtr word = make(ExprKind::kContext, std::move(type), span);
  word->offset = offset;
  word->is_copied = true;
  return word;
}

Lowering::ExprPtr Lowering::lower_typed_field(const EventField& field, Span span) {
  if (field.shape == EventField::Shape::kPointer)
    return context_word(field.offset, Type::void_pointer(), span);
  bool is_plain = field.size == 1 || field.size == 2 || field.size == 4 || field.size == 8;
  if (field.shape != EventField::Shape::kInt || !is_plain) {
    diagnostics_.error(span, "{}: an argument of type '{}' is not built yet", field.name,
                       field.type);
    return unknown(span);
  }
  ExprPtr word = make(ExprKind::kContext, Type::uint64(), span);
  word->offset = field.offset;
  return truncate(std::move(word), Type::integer(field.size, field.is_signed), span);
}

Lowering::ExprPtr Lowering::lower_typed_argument(uint32_t index, Span span) {
  const Tracepoint& event = instance_.events.front();
  instance_.used_arguments.insert(index);
  uint32_t count = event.record_size / 8;
  if (!event.fields.empty() && event.fields.back().name == "retval") count--;
  if (index >= count) {
    diagnostics_.error(span, "{} has {} argument{}: there is no arg{}", name_of(event), count,
                       count == 1 ? "" : "s", index);
    return unknown(span);
  }
  return context_word(index * 8, Type::uint64(), span);
}

Lowering::ExprPtr Lowering::lower_typed_result(Span span) {
  const Tracepoint& event = instance_.events.front();
  instance_.used_fields.insert("retval");
  if (event.fields.empty() || event.fields.back().name != "retval") {
    diagnostics_.error(span, "{} returns nothing", name_of(event));
    return unknown(span);
  }
  return lower_typed_field(event.fields.back(), span);
}

}  // namespace spile::lang
