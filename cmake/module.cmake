# spile_module(path [FREESTANDING] DEPS a b c [LIBS x y])
#
# One folder of src/ is one library. Sources are listed by the folder itself: *.cc without
# *_test.cc, *_bench.cc, *_fuzz.cc. tools/check_layers.py reads the same call, so the link graph
# and the include graph cannot drift apart.
function(spile_module path)
  cmake_parse_arguments(M "FREESTANDING" "" "DEPS;LIBS" ${ARGN})
  string(REPLACE "/" "_" target "spile_${path}")
  file(GLOB sources CONFIGURE_DEPENDS "*.cc" "*.S")
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "(_(test|bench|fuzz)|/main)\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set(deps)
  foreach(dep IN LISTS M_DEPS)
    string(REPLACE "/" "_" dep "spile_${dep}")
    list(APPEND deps ${dep})
  endforeach()
  if(sources)
    add_library(${target} STATIC ${sources})
    target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(${target} PUBLIC ${deps} ${M_LIBS} PRIVATE spile_warnings)
  else()
    add_library(${target} INTERFACE)
    target_include_directories(${target} INTERFACE ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(${target} INTERFACE ${deps} ${M_LIBS})
  endif()
  if(M_FREESTANDING AND sources)
    target_compile_options(${target} PRIVATE
      -ffreestanding -fno-exceptions -fno-rtti -fno-stack-protector -fno-asynchronous-unwind-tables
      -fPIE -mgeneral-regs-only -mno-red-zone -fcf-protection=none -fno-tree-loop-distribute-patterns
      -fvisibility=hidden -O2)
  endif()
  if(tests AND SPILE_BUILD_TESTS)
    add_executable(${target}_test ${tests})
    target_link_libraries(${target}_test PRIVATE ${target} spile_warnings GTest::gtest_main)
    add_test(NAME unit/${path} COMMAND ${target}_test)
    set_tests_properties(unit/${path} PROPERTIES TIMEOUT 300 LABELS unit)
  endif()
endfunction()
