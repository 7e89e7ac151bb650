#include "dwarf/dwarf.h"

#include <dwarf.h>
#include <elfutils/libdw.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <unordered_map>

#include "base/fd.h"

namespace spile::dwarf {

struct File::Handle {
  Fd fd;
  Dwarf* dwarf = nullptr;
  /// Names of structs -> where they are described; made when first asked for.
  std::unordered_map<std::string, Dwarf_Off> structs, unions;
  bool is_indexed = false;

  Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (dwarf != nullptr) dwarf_end(dwarf);
  }
};

File::File(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

namespace {

constexpr int kMaxDepth = 16;
constexpr int kIntegerRegisters = 6;

std::string name_of(Dwarf_Die* die) {
  const char* name = dwarf_diename(die);
  return name == nullptr ? "" : name;
}

/// The type of a die, without typedefs and qualifiers. None: void.
std::optional<Dwarf_Die> type_die(Dwarf_Die* die) {
  Dwarf_Attribute attribute;
  Dwarf_Die named, bare;
  if (dwarf_attr_integrate(die, DW_AT_type, &attribute) == nullptr ||
      dwarf_formref_die(&attribute, &named) == nullptr || dwarf_peel_type(&named, &bare) != 0)
    return std::nullopt;
  return bare;
}

uint64_t number_of(Dwarf_Die* die, unsigned attribute, uint64_t otherwise) {
  Dwarf_Attribute found;
  Dwarf_Word value = 0;
  if (dwarf_attr_integrate(die, attribute, &found) == nullptr ||
      dwarf_formudata(&found, &value) != 0)
    return otherwise;
  return value;
}

Type read_type(Dwarf_Die* die, int depth);

Type base_type(Dwarf_Die* die, Type type) {
  switch (number_of(die, DW_AT_encoding, DW_ATE_unsigned)) {
    case DW_ATE_float:
    case DW_ATE_complex_float: type.kind = Type::Kind::kFloat; break;
    case DW_ATE_boolean: type.kind = Type::Kind::kBool; break;
    case DW_ATE_signed_char: type.is_char = true; [[fallthrough]];
    case DW_ATE_signed:
      type.kind = Type::Kind::kInteger;
      type.is_signed = true;
      break;
    case DW_ATE_unsigned_char: type.is_char = name_of(die) == "char"; [[fallthrough]];
    default: type.kind = Type::Kind::kInteger;
  }
  return type;
}

/// Elements of the first dimension; arrays of arrays are flattened to their elements.
uint32_t array_count(Dwarf_Die* die) {
  Dwarf_Die child;
  uint64_t count = 0;
  if (dwarf_child(die, &child) != 0) return 0;
  do {
    if (dwarf_tag(&child) != DW_TAG_subrange_type) continue;
    const uint64_t upper = number_of(&child, DW_AT_upper_bound, UINT64_MAX);
    const uint64_t one = upper == UINT64_MAX ? number_of(&child, DW_AT_count, 0) : upper + 1;
    count = count == 0 ? one : count * one;
  } while (dwarf_siblingof(&child, &child) == 0);
  return count > UINT32_MAX ? 0 : static_cast<uint32_t>(count);
}

Type target_of(Dwarf_Die* die, Type type, int depth) {
  if (auto target = type_die(die); target && depth < kMaxDepth) {
    Type pointee = read_type(&*target, depth + 1);
    if (pointee.kind != Type::Kind::kOther)
      type.target = std::make_shared<Type>(std::move(pointee));
  }
  return type;
}

Type read_type(Dwarf_Die* die, int depth) {
  Type type;
  type.size_bytes = static_cast<uint32_t>(number_of(die, DW_AT_byte_size, 0));
  switch (dwarf_tag(die)) {
    case DW_TAG_base_type: return base_type(die, type);
    case DW_TAG_enumeration_type:
      type.kind = Type::Kind::kInteger;
      if (type.size_bytes == 0) type.size_bytes = 4;
      return type;
    case DW_TAG_pointer_type:
    case DW_TAG_reference_type:
    case DW_TAG_rvalue_reference_type:
      type.kind = Type::Kind::kPointer;
      type.size_bytes = 8;
      return target_of(die, type, depth);
    case DW_TAG_array_type:
      type.kind = Type::Kind::kArray;
      type.count = array_count(die);
      return target_of(die, type, depth);
    case DW_TAG_structure_type:
    case DW_TAG_class_type:
    case DW_TAG_union_type:
      type.kind = Type::Kind::kStruct;
      type.is_union = dwarf_tag(die) == DW_TAG_union_type;
      type.name = name_of(die);
      type.die = dwarf_dieoffset(die);
      return type;
    default: type.kind = Type::Kind::kOther; return type;
  }
}

Type type_of(Dwarf_Die* die) {
  auto type = type_die(die);
  return type ? read_type(&*type, 0) : Type{};
}

/// Calls `visit` with each unit's top die, until it returns true.
template <typename Visit>
void for_each_unit(Dwarf* dwarf, Visit visit) {
  Dwarf_Off at = 0, next = 0;
  size_t header = 0;
  while (dwarf_nextcu(dwarf, at, &next, &header, nullptr, nullptr, nullptr) == 0) {
    Dwarf_Die unit;
    if (dwarf_offdie(dwarf, at + header, &unit) != nullptr && visit(unit)) return;
    at = next;
  }
}

struct FunctionSearch {
  uint64_t address;
  std::optional<Dwarf_Die> found;
};

int look_at_function(Dwarf_Die* die, void* search) {
  auto& wanted = *static_cast<FunctionSearch*>(search);
  Dwarf_Addr entry = 0;
  if (dwarf_func_inline(die) != 0 || dwarf_entrypc(die, &entry) != 0 || entry != wanted.address)
    return DWARF_CB_OK;
  wanted.found = *die;
  return DWARF_CB_ABORT;
}

/// By the index of addresses where there is one, else unit by unit.
std::optional<Dwarf_Die> function_at(Dwarf* dwarf, uint64_t address) {
  FunctionSearch search{address, std::nullopt};
  Dwarf_Die unit;
  if (dwarf_addrdie(dwarf, address, &unit) != nullptr)
    dwarf_getfuncs(&unit, look_at_function, &search, 0);
  if (search.found) return search.found;
  for_each_unit(dwarf, [&](Dwarf_Die& one) {
    dwarf_getfuncs(&one, look_at_function, &search, 0);
    return search.found.has_value();
  });
  return search.found;
}

/// Where the ABI passes the parameters of a function, one after the other. Source: System V psABI,
/// x86-64, 3.2.3.
class Assigner {
 public:
  /// In C++ whether a struct goes in registers or by an address depends on its constructors, which
  /// are not looked at.
  Assigner(const Type& result, bool is_cpp) : is_cpp_(is_cpp) {
    if (result.kind != Type::Kind::kStruct) return;
    if (result.size_bytes > 16) next_ = 1;  // rdi says where the result goes
    is_lost_ = is_cpp && result.size_bytes <= 16;
  }

  void assign(Parameter& parameter) {
    const Type& type = parameter.type;
    switch (type.kind) {
      case Type::Kind::kFloat:
        parameter.problem = "a floating-point parameter is not built yet";
        return;
      case Type::Kind::kStruct: return structure(parameter);
      case Type::Kind::kOther:
      case Type::Kind::kVoid:
      case Type::Kind::kArray: parameter.problem = "its type is not understood"; return;
      default: break;
    }
    if (is_lost_) {
      parameter.problem = "it comes behind a struct that is passed or returned by value";
    } else if (type.size_bytes > 8) {
      parameter.problem = "it has more than 8 bytes";
      next_ += 2;
    } else if (next_ >= kIntegerRegisters) {
      parameter.problem = "it is not passed in a register";
    } else {
      parameter.register_index = next_++;
    }
  }

 private:
  void structure(Parameter& parameter) {
    parameter.problem = "a struct that is passed by value is not built yet";
    // In C, of more than two words: in memory, and no register is used.
    if (is_cpp_ || parameter.type.size_bytes <= 16) is_lost_ = true;
  }

  int next_ = 0;
  bool is_cpp_ = false, is_lost_ = false;
};

Field read_member(Dwarf_Die* die) {
  Field field;
  field.name = name_of(die);
  field.type = type_of(die);
  const uint64_t byte = number_of(die, DW_AT_data_member_location, 0);
  field.bits = static_cast<uint32_t>(number_of(die, DW_AT_bit_size, 0));
  field.offset_bits = number_of(die, DW_AT_data_bit_offset, byte * 8);
  // Before DWARF 4: counted from the unit's high end.
  const uint64_t from_top = number_of(die, DW_AT_bit_offset, UINT64_MAX);
  if (field.bits != 0 && from_top != UINT64_MAX)
    field.offset_bits = byte * 8 + field.type.size_bytes * 8u - from_top - field.bits;
  return field;
}

/// A base class is an anonymous member: its fields are found through it.
Structure read_structure(Dwarf_Die* die) {
  Structure out;
  out.type = read_type(die, 0);
  Dwarf_Die child;
  if (dwarf_child(die, &child) != 0) return out;
  do {
    const int tag = dwarf_tag(&child);
    Dwarf_Attribute attribute;
    const bool is_static = dwarf_hasattr(&child, DW_AT_external) != 0 ||
                           dwarf_attr(&child, DW_AT_const_value, &attribute) != nullptr;
    if ((tag != DW_TAG_member && tag != DW_TAG_inheritance) || is_static) continue;
    Field field = read_member(&child);
    if (tag == DW_TAG_inheritance) field.name.clear();
    out.fields.push_back(std::move(field));
  } while (dwarf_siblingof(&child, &child) == 0);
  return out;
}

}  // namespace

Result<File> File::open(const std::string& path) {
  auto handle = std::make_unique<Handle>();
  handle->fd = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!handle->fd) return fail_errno(errno, "open {}", path);
  handle->dwarf = dwarf_begin(handle->fd.get(), DWARF_C_READ);
  if (handle->dwarf == nullptr)
    return fail(ErrorCode::kUnsupported, "{} has no debug information", path);
  return File(std::move(handle));
}

Result<std::vector<Parameter>> File::parameters(uint64_t address) const {
  auto function = function_at(handle_->dwarf, address);
  if (!function)
    return fail(ErrorCode::kNotFound, "the debug information has no function at {:#x}", address);
  std::vector<Parameter> out;
  Dwarf_Die unit, child;
  const int language =
      dwarf_diecu(&*function, &unit, nullptr, nullptr) == nullptr ? -1 : dwarf_srclang(&unit);
  const bool is_c = language == DW_LANG_C || language == DW_LANG_C89 || language == DW_LANG_C99 ||
                    language == DW_LANG_C11;
  Assigner assigner(type_of(&*function), !is_c);
  if (dwarf_child(&*function, &child) != 0) return out;
  do {
    if (dwarf_tag(&child) != DW_TAG_formal_parameter) continue;
    Parameter parameter{name_of(&child), type_of(&child), -1, ""};
    assigner.assign(parameter);
    out.push_back(std::move(parameter));
  } while (dwarf_siblingof(&child, &child) == 0);
  return out;
}

namespace {

bool is_source(const char* path, std::string_view wanted) {
  if (path == nullptr) return false;
  const std::string_view whole = path;
  if (!whole.ends_with(wanted)) return false;
  return whole.size() == wanted.size() || whole[whole.size() - wanted.size() - 1] == '/' ||
         wanted.starts_with('/');
}

struct AroundSearch {
  uint64_t address;
  std::string name;
};

int look_around(Dwarf_Die* die, void* search) {
  auto& wanted = *static_cast<AroundSearch*>(search);
  if (dwarf_haspc(die, wanted.address) <= 0) return DWARF_CB_OK;
  Dwarf_Attribute linked;
  const char* symbol = dwarf_attr_integrate(die, DW_AT_linkage_name, &linked) == nullptr
                           ? nullptr
                           : dwarf_formstring(&linked);
  wanted.name = symbol == nullptr ? name_of(die) : symbol;
  return DWARF_CB_ABORT;
}

/// The function, not inlined, that an address is in.
std::string function_around(Dwarf_Die* unit, Dwarf_Addr address) {
  AroundSearch search{address, {}};
  dwarf_getfuncs(unit, look_around, &search, 0);
  return search.name;
}

/// What one unit has of a line.
struct LineSearch {
  std::string_view file;
  uint32_t line, column;
  bool has_file = false;
  uint32_t next = 0;                           ///< the first line behind it that has code; 0: none
  std::map<std::string, uint64_t> found = {};  ///< the lowest address by function

  void look(Dwarf_Die& unit) {
    Dwarf_Lines* lines = nullptr;
    size_t count = 0;
    if (dwarf_getsrclines(&unit, &lines, &count) != 0) return;
    for (size_t i = 0; i < count; i++) look(unit, dwarf_onesrcline(lines, i));
  }

  void look(Dwarf_Die& unit, Dwarf_Line* row) {
    bool begins = false, ends = false;
    int number = 0, at = 0;
    Dwarf_Addr address = 0;
    const bool is_read = dwarf_linebeginstatement(row, &begins) == 0 &&
                         dwarf_lineendsequence(row, &ends) == 0 &&
                         dwarf_lineno(row, &number) == 0 && dwarf_linecol(row, &at) == 0 &&
                         dwarf_lineaddr(row, &address) == 0;
    if (!is_read || !begins || ends || number <= 0) return;
    if (!is_source(dwarf_linesrc(row, nullptr, nullptr), file)) return;
    has_file = true;
    const auto here = static_cast<uint32_t>(number);
    if (here > line && (next == 0 || here < next)) next = here;
    if (here != line || (column != 0 && static_cast<uint32_t>(at) != column)) return;
    auto [known, is_new] = found.try_emplace(function_around(&unit, address), address);
    if (!is_new) known->second = std::min(known->second, address);
  }
};

}  // namespace

Result<std::vector<LinePlace>> File::line(std::string_view file,
                                          uint32_t line,
                                          uint32_t column) const {
  LineSearch search{file, line, column};
  for_each_unit(handle_->dwarf, [&](Dwarf_Die& unit) {
    search.look(unit);
    return false;
  });
  if (!search.has_file)
    return fail(ErrorCode::kNotFound, "the debug information has no source file '{}'", file);
  if (search.found.empty()) {
    const std::string where = column == 0 ? fmt::format("line {}", line)
                                          : fmt::format("line {}, column {},", line, column);
    return fail(ErrorCode::kNotFound, "no code begins at {} of {}{}", where, file,
                search.next == 0 ? std::string()
                                 : fmt::format("; the next line with code is {}", search.next));
  }
  std::vector<LinePlace> places;
  for (const auto& [function, address] : search.found) places.push_back({address, function});
  return places;
}

Result<Structure> File::structure_at(uint64_t die) const {
  Dwarf_Die found;
  if (dwarf_offdie(handle_->dwarf, die, &found) == nullptr)
    return fail(ErrorCode::kNotFound, "the debug information has nothing at {:#x}", die);
  return read_structure(&found);
}

Result<Structure> File::structure(std::string_view name, bool is_union) const {
  Handle& handle = *handle_;
  if (!handle.is_indexed) {
    handle.is_indexed = true;
    for_each_unit(handle.dwarf, [&handle](Dwarf_Die& unit) {
      Dwarf_Die child;
      if (dwarf_child(&unit, &child) != 0) return false;
      do {
        const int tag = dwarf_tag(&child);
        const bool is_struct = tag == DW_TAG_structure_type || tag == DW_TAG_class_type;
        if ((!is_struct && tag != DW_TAG_union_type) ||
            dwarf_hasattr(&child, DW_AT_declaration) != 0)
          continue;
        (is_struct ? handle.structs : handle.unions)
            .try_emplace(name_of(&child), dwarf_dieoffset(&child));
      } while (dwarf_siblingof(&child, &child) == 0);
      return false;
    });
  }
  const auto& known = is_union ? handle.unions : handle.structs;
  const auto found = known.find(std::string(name));
  if (name.empty() || found == known.end())
    return fail(ErrorCode::kNotFound, "the debug information has no '{}'", name);
  return structure_at(found->second);
}

}  // namespace spile::dwarf
