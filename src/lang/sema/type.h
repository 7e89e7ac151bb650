// The types of the script language, and how two of them become one.
//
// A value is either a number, which lives in a register as 64 bits, correctly extended from its
// type's size, or an aggregate (string, buffer, tuple), which lives in memory. In memory every
// number takes 8 bytes and everything is a multiple of 8: keys then have no holes, and a uint32 and
// an int64 in one place need no conversion.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle/bundle.h"

namespace spile::lang {

struct Type {
  enum class Kind : uint8_t {
    kUnknown,  ///< not inferred yet, or wrong and reported: no further errors from it
    kNone,     ///< the value of printf(): none
    kInt,
    kString,
    kBuffer,
    kPointer,
    kProbe,  ///< `probe`: a u64, the probe's number
    kFunc,   ///< `func`: the same
    kTuple,
    kUserStack,     ///< ustack: an id and the process
    kKernelStack,   ///< kstack: an id
    kUserSymbol,    ///< usym(): an address and the process
    kKernelSymbol,  ///< ksym(): an address
    kStruct,        ///< a struct or union in memory: as a value, its address
    kArray,         ///< an array in memory: as a value, its address
    kInet,          ///< ntop(): family and address
    kMac,           ///< macaddr()
    kTimestamp,     ///< strftime(): nanoseconds since boot
    kNamed,         ///< a number that is printed as a name: strerror(), username()
    kObject,        ///< a copy of a struct, union or array: fields[0] is its type, size its bytes
  };
  Kind kind = Kind::kUnknown;
  uint32_t size = 0;  ///< kInt: 1, 2, 4, 8. kString: with the NUL. kBuffer: of the data, its u32
                      ///< length not included
  bool is_signed = true;  ///< kInt
  bool is_flexible =
      false;  ///< kInt: made of literals that are not negative: takes the sign of what it meets
  std::vector<Type> fields;  ///< kTuple: elements. kPointer: what it points to; empty for void
  bundle::StackMode stack_mode = bundle::StackMode::kBpftrace;  ///< stacks
  uint32_t frames = 0;                                          ///< stacks: the most
  uint32_t count = 0;  ///< kArray: elements, 0: not known; fields[0] is one of them
  /// kStruct: "struct sock"; kTimestamp: the format; kNamed: which names; kInt: "enum x"
  std::string name = {};
  std::vector<std::string> names = {};  ///< kTuple: of the fields of a record
  bool is_bool = false;                 ///< kInt: printed as true or false
  /// kObject, and kInt of an enum: how it is printed; one for each type of an analysis.
  std::shared_ptr<const bundle::ValueType> layout = nullptr;

  static Type none() { return {Kind::kNone, 0, false, false, {}}; }
  static Type integer(uint32_t size_bytes, bool is_signed) {
    return {Kind::kInt, size_bytes, is_signed, false, {}};
  }
  static Type int64() { return integer(8, true); }
  static Type uint64() { return integer(8, false); }
  static Type literal() { return {Kind::kInt, 8, true, true, {}}; }
  static Type enumeration(std::string name,
                          uint32_t size_bytes,
                          bool is_signed,
                          std::shared_ptr<const bundle::ValueType> layout) {
    Type type = integer(size_bytes, is_signed);
    type.name = std::move(name);
    type.layout = std::move(layout);
    return type;
  }
  /// What comparisons give: 0 or 1.
  static Type boolean() {
    Type type{Kind::kInt, 1, true, true, {}};
    type.is_bool = true;
    return type;
  }
  static Type object(Type type, uint32_t bytes, std::shared_ptr<const bundle::ValueType> layout) {
    Type copy{Kind::kObject, bytes, false, false, {std::move(type)}};
    copy.layout = std::move(layout);
    return copy;
  }
  static Type string(uint32_t size_bytes) { return {Kind::kString, size_bytes, false, false, {}}; }
  static Type buffer(uint32_t data_bytes) { return {Kind::kBuffer, data_bytes, false, false, {}}; }
  static Type pointer_to(Type pointee) {
    return {Kind::kPointer, 8, false, false, {std::move(pointee)}};
  }
  static Type void_pointer() { return {Kind::kPointer, 8, false, false, {}}; }
  static Type probe() { return {Kind::kProbe, 8, false, false, {}}; }
  static Type func() { return {Kind::kFunc, 8, false, false, {}}; }
  static Type stack(Kind kind, bundle::StackMode mode, uint32_t frames) {
    return {kind, 0, false, false, {}, mode, frames};
  }
  static Type symbol(Kind kind) { return {kind, 0, false, false, {}}; }
  static Type structure(std::string name) {
    Type type{Kind::kStruct, 8, false, false, {}};
    type.name = std::move(name);
    return type;
  }
  static Type array_of(Type element, uint32_t count) {
    Type type{Kind::kArray, 8, false, false, {std::move(element)}};
    type.count = count;
    return type;
  }
  static Type inet() { return {Kind::kInet, 0, false, false, {}}; }
  static Type mac() { return {Kind::kMac, 0, false, false, {}}; }
  static Type timestamp(std::string format) {
    Type type{Kind::kTimestamp, 8, false, false, {}};
    type.name = std::move(format);
    return type;
  }
  static Type named(std::string names) {
    Type type{Kind::kNamed, 8, false, false, {}};
    type.name = std::move(names);
    return type;
  }
  static Type tuple(std::vector<Type> fields) {
    return {Kind::kTuple, 0, false, false, std::move(fields)};
  }

  bool is_unknown() const { return kind == Kind::kUnknown; }
  bool is_none() const { return kind == Kind::kNone; }
  bool is_int() const { return kind == Kind::kInt; }
  bool is_enum() const { return is_int() && layout != nullptr; }
  /// The same number, printed as one.
  void forget_names() {
    if (!is_enum()) return;
    layout = nullptr;
    name.clear();
  }
  bool is_string() const { return kind == Kind::kString; }
  bool is_pointer() const { return kind == Kind::kPointer; }
  /// A register holds it.
  bool is_scalar() const {
    return is_int() || is_pointer() || kind == Kind::kProbe || kind == Kind::kFunc ||
           kind == Kind::kKernelStack || kind == Kind::kKernelSymbol || is_place() ||
           kind == Kind::kTimestamp || kind == Kind::kMac || kind == Kind::kNamed;
  }
  /// Known by its address alone.
  bool is_place() const { return kind == Kind::kStruct || kind == Kind::kArray; }
  bool is_object() const { return kind == Kind::kObject; }
  bool is_stack() const { return kind == Kind::kUserStack || kind == Kind::kKernelStack; }
  bool is_symbol() const { return kind == Kind::kUserSymbol || kind == Kind::kKernelSymbol; }
  /// Can be calculated with and compared as a number.
  bool is_number() const { return is_int() || is_pointer(); }
  /// Compared, divided and shifted as unsigned.
  bool is_unsigned_number() const { return !is_int() || !is_signed; }

  bool operator==(const Type&) const = default;
};

/// Bytes in memory, a multiple of 8.
uint32_t storage_bytes(const Type& type);
/// Where each element of a tuple is, in bytes from its start.
std::vector<uint32_t> field_offsets(const Type& tuple);
/// As keys, values and record fields are described to engines and output.
bundle::ValueType to_value_type(const Type& type);
/// "int64", "string[16]", "(int64,string[128])", "uint8 *".
std::string to_string(const Type& type);

/// A place that is only ever read or written as 64-bit numbers: variables and maps without a
/// declared type.
Type widened(const Type& type);

enum class Join : uint8_t { kSame, kWidened, kMismatch };
/// Makes `into` the type that holds both: the longer string, the signed number, element by element
/// in tuples.
Join join(Type& into, const Type& from);

}  // namespace spile::lang
