# Real programs, faults, bad input, both engines and other kernels: one python program each, included by CMakeLists.txt.
# Each program bounds its own time (tracing.py: main); the limit here is for a soak (SPILE_SOAK=1), known only when it runs.
foreach(name IN ITEMS real_programs soak torture variants kill_steps same_script rows beside_bpftrace language functions stacks usdt tools listing uprobes switching suites
    traps bad_input returns library kernel_samples go kernel_engine vm_kernel vm)
  add_test(NAME system/${name} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/test_${name}.py)
  set_tests_properties(system/${name} PROPERTIES ENVIRONMENT "${environment}" SKIP_RETURN_CODE 77 TIMEOUT 7200
    LABELS system RUN_SERIAL ON)
endforeach()
