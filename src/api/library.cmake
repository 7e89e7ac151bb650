# libspile.so and libspile.a, what finds them (CMake package, pkg-config), and their installation.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Every object of the module, and what it needs of the others; nothing but the library's own names can be seen.
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/empty.cc "")
add_library(spile_shared SHARED ${CMAKE_CURRENT_BINARY_DIR}/empty.cc)
target_link_libraries(spile_shared PRIVATE $<LINK_LIBRARY:WHOLE_ARCHIVE,spile_api>)
target_link_options(spile_shared PRIVATE -Wl,--as-needed
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/libspile.map)
set_target_properties(spile_shared PROPERTIES OUTPUT_NAME spile EXPORT_NAME spile
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/libspile.map
  LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
target_include_directories(spile_shared INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

# The archive holds all modules that the library is made of, so that a user names one file.
set(parts)
foreach(part IN LISTS SPILE_LIBRARY_PARTS)
  list(APPEND parts spile_${part})
endforeach()
set(script "create ${PROJECT_BINARY_DIR}/libspile.a\n")
foreach(part IN LISTS parts)
  string(APPEND script "addlib $<TARGET_FILE:${part}>\n")
endforeach()
string(APPEND script "save\nend\n")
file(GENERATE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/libspile.mri CONTENT "${script}")
add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/libspile.a
  COMMAND ${CMAKE_COMMAND} -E rm -f ${PROJECT_BINARY_DIR}/libspile.a
  COMMAND ${CMAKE_AR} -M < ${CMAKE_CURRENT_BINARY_DIR}/libspile.mri
  DEPENDS ${parts} ${CMAKE_CURRENT_BINARY_DIR}/libspile.mri VERBATIM)
add_custom_target(spile_archive ALL DEPENDS ${PROJECT_BINARY_DIR}/libspile.a)

install(TARGETS spile_shared EXPORT spile-targets LIBRARY COMPONENT library)
install(FILES ${PROJECT_BINARY_DIR}/libspile.a DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library)
# It runs the scripts of tracer.hpp.
install(PROGRAMS ${PROJECT_BINARY_DIR}/spile DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT library)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/spile DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library)
install(EXPORT spile-targets NAMESPACE spile:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/spile COMPONENT library)
configure_package_config_file(${CMAKE_CURRENT_SOURCE_DIR}/spile-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/spile-config.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/spile
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/spile-config-version.cmake COMPATIBILITY SameMinorVersion)
configure_file(${CMAKE_CURRENT_SOURCE_DIR}/spile.pc.in ${CMAKE_CURRENT_BINARY_DIR}/spile.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/spile-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/spile-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/spile COMPONENT library)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/spile.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT library)
