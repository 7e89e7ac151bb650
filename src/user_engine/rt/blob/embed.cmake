# Checks the linked blob and writes it as C++: blob.o, blob.su, blob.elf, blob.bin -> blob_data.cc
#
# Run as cmake -DNM= -DREADELF= -DOBJDUMP= -P embed.cmake in the folder that holds these files. Every rule the blob must
# keep is checked here on the machine code, not on the flags that should have brought it about.
cmake_policy(VERSION 3.25)
set(max_stack_bytes 400)

function(run_tool out)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  set(${out} "${text}" PARENT_SCOPE)
endfunction()

# 1. Position-independent: only references relative to the instruction.
run_tool(relocations ${READELF} -rW blob.o)
string(REGEX MATCHALL "R_X86_64_[A-Z0-9_]+" kinds "${relocations}")
list(REMOVE_DUPLICATES kinds)
list(REMOVE_ITEM kinds R_X86_64_PC32 R_X86_64_PLT32)
if(kinds)
  message(FATAL_ERROR "the blob would need relocation: ${kinds}")
endif()
run_tool(relocations ${READELF} -rW blob.elf)
if(relocations MATCHES "R_X86_64")
  message(FATAL_ERROR "the linked blob has relocations: ${relocations}")
endif()

# 2. Complete: nothing undefined, no writable section.
run_tool(undefined ${NM} -u blob.elf)
if(NOT undefined STREQUAL "")
  message(FATAL_ERROR "the blob uses what it does not hold:\n${undefined}")
endif()
run_tool(sections ${READELF} -SW blob.elf)
if(sections MATCHES "\\] \\.[^\n]* WA[ T]")
  message(FATAL_ERROR "the blob has writable data:\n${sections}")
endif()

# 3. No SIMD or x87 register, no call (so that a helper's stack use is its own), no jump through a register or memory.
run_tool(code ${OBJDUMP} -d --no-show-raw-insn blob.elf)
if(code MATCHES "[^\n]*%([xyz]mm|mm[0-7]|st)[^\n]*")
  message(FATAL_ERROR "the blob touches SIMD or x87 state: ${CMAKE_MATCH_0}")
endif()
if(code MATCHES "[^\n]*\t(call|notrack|jmp +\\*|std|push?f|popf|int)[^\n]*")
  message(FATAL_ERROR "the blob holds a forbidden instruction: ${CMAKE_MATCH_0}")
endif()

# 4. Small.
file(SIZE blob.bin size)
if(size GREATER 65536)
  message(FATAL_ERROR "the blob has ${size} bytes, 65536 are allowed")
endif()

# 5. Entries and their stack.
run_tool(symbols ${NM} blob.elf)
file(READ blob.su usage)
string(REGEX MATCHALL "[0-9a-f]+ T rt_helper_[0-9]+" entries "${symbols}")
set(table "")
foreach(entry IN LISTS entries)
  string(REGEX MATCH "([0-9a-f]+) T rt_helper_([0-9]+)" ignored "${entry}")
  set(offset ${CMAKE_MATCH_1})
  set(number ${CMAKE_MATCH_2})
  if(NOT usage MATCHES "rt_helper_${number}\\([^\n]*\t([0-9]+)\tstatic")
    message(FATAL_ERROR "helper ${number}: no fixed stack use in blob.su")
  endif()
  set(stack ${CMAKE_MATCH_1})
  if(stack GREATER max_stack_bytes)
    message(FATAL_ERROR "helper ${number} uses ${stack} bytes of stack, ${max_stack_bytes} are allowed")
  endif()
  string(APPEND table "  {${number}, 0x${offset}, ${stack}},\n")
endforeach()
if(table STREQUAL "")
  message(FATAL_ERROR "the blob has no entries")
endif()

file(READ blob.bin bytes HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n" bytes
       "${bytes}")
file(WRITE blob_data.cc "#include \"user_engine/rt/blob_data.h\"

namespace spile::rt {
const uint8_t kBlobImage[] = {
${bytes}};
const size_t kBlobImageBytes = sizeof kBlobImage;
const HelperEntry kHelperEntries[] = {
${table}};
const size_t kHelperEntryCount = sizeof kHelperEntries / sizeof kHelperEntries[0];
}  // namespace spile::rt
")
