# How every library, tool and test of rbt is built: one function each, so that the folders' files only list what they hold.

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(tl-expected REQUIRED)
find_package(Boost REQUIRED COMPONENTS program_options)
pkg_check_modules(LIBURING REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(LIBPMEM REQUIRED IMPORTED_TARGET libpmem)
pkg_check_modules(LIBNBD REQUIRED IMPORTED_TARGET libnbd)
pkg_check_modules(VERBS REQUIRED IMPORTED_TARGET libibverbs librdmacm)

# Of libnvme only the header with the specification's structures is used (its .pc would pull in libraries we do not call).
find_path(LIBNVME_INCLUDE_DIR nvme/types.h REQUIRED)

# Depend mode spares a run of the preprocessor, which clang could not do over precompiled headers anyway; for the rest see
# cmake/precompiled.cmake. The sloppiness is about what ccache cannot see within them: definitions, __TIME__.
find_program(RBT_CCACHE ccache)
if(RBT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_DEPEND=1 CCACHE_PCH_EXTSUM=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${RBT_CCACHE})
endif()

# Everything that is only ours: warnings, sanitizers. Never exported to those who link us.
add_library(rbt_build_flags INTERFACE)
target_compile_options(rbt_build_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wswitch-enum -Wnon-virtual-dtor -Werror
  -fno-omit-frame-pointer
  # everywhere the same, so that precompiled headers serve libraries and programs; nobody replaces our functions at run time
  -fPIC -fno-semantic-interposition
  # gcc 12 sees uninitialised members in every other std::optional; clang, which builds all of this too, does not
  "$<$<CXX_COMPILER_ID:GNU>:-Wno-interference-size;-Wno-maybe-uninitialized>")
if(RBT_SANITIZE)
  target_compile_options(rbt_build_flags INTERFACE -fsanitize=${RBT_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(rbt_build_flags INTERFACE -fsanitize=${RBT_SANITIZE})
  if(RBT_SANITIZE MATCHES thread)
    # fences are modelled by the atomics beside them; gcc warns that tsan does not see them
    target_compile_options(rbt_build_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  endif()
endif()

# Programs, and the many tests, are linked in a fifth of the time that the default takes.
find_program(RBT_LLD ld.lld)
if(RBT_LLD)
  target_link_options(rbt_build_flags INTERFACE -fuse-ld=lld)
endif()

if(RBT_FUZZ)
  # the libraries report their coverage to the fuzzer; only the targets themselves have its main()
  target_compile_options(rbt_build_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

include(cmake/precompiled.cmake)

# For the sanitizers, which nobody edits by: a library's files eight at a time take half the time. Release and dev compile each alone.
option(RBT_UNITY "Compile the files of each library together, eight at a time" OFF)

# rbt_library(NAME SOURCES … HEADERS … LINK … PRIVATE_LINK …): librbt-NAME, alias rbt::NAME; HEADERS (public ones) are
# installed below rbt/<folder>/.
function(rbt_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;HEADERS;LINK;PRIVATE_LINK" ${ARGN})
  add_library(rbt-${name} STATIC ${ARG_SOURCES})
  add_library(rbt::${name} ALIAS rbt-${name})
  set_target_properties(rbt-${name} PROPERTIES EXPORT_NAME ${name})
  target_include_directories(rbt-${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/rbt>)
  target_compile_features(rbt-${name} PUBLIC cxx_std_20)
  target_link_libraries(rbt-${name} PUBLIC ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK})
  rbt_compiled_as(rbt-${name} code)
  if(RBT_UNITY)
    set_target_properties(rbt-${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  endif()
  set_property(GLOBAL APPEND PROPERTY RBT_LIBRARIES rbt-${name})
  file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  foreach(header IN LISTS ARG_HEADERS)
    get_filename_component(below ${folder}/${header} DIRECTORY)
    install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/rbt/${below})
    set_property(GLOBAL APPEND PROPERTY RBT_PUBLIC_HEADERS ${folder}/${header})
  endforeach()
endfunction()

# rbt_test_library(NAME SOURCES … LINK …): what several tests share.
function(rbt_test_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_LINK})
  rbt_compiled_as(${name} test)
endfunction()

# rbt_test_timeout(NAME SECONDS): when CTest gives it up. Under sanitizers it is slow by itself, and beside a virtual machine (ci/test).
function(rbt_test_timeout name seconds)
  if(RBT_SANITIZE)
    math(EXPR seconds "${seconds} * 4")
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${seconds})
endfunction()

# rbt_test(NAME LABEL unit|wire|sim|shm|… SOURCES … LINK …): one Catch2 program, one CTest test.
function(rbt_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE rbt_catch_main ${ARG_LINK})
  rbt_compiled_as(${name} test)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABEL}")
  rbt_test_timeout(${name} ${ARG_TIMEOUT})
endfunction()

if(RBT_FUZZ)
  add_custom_target(fuzzers)
endif()

# rbt_fuzzer(NAME SOURCES … LINK …): a libFuzzer target; its corpus is tests/fuzz/corpus/NAME.
function(rbt_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  if(NOT RBT_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  add_dependencies(fuzzers ${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINK})
  rbt_compiled_as(${name} code)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  add_test(NAME ${name} COMMAND ${name} -max_total_time=10 -timeout=10 -print_final_stats=1
           ${CMAKE_CURRENT_BINARY_DIR}/corpus-${name} ${CMAKE_CURRENT_SOURCE_DIR}/corpus/${name})
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/corpus-${name})
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 120)
endfunction()

# CMake package config and pkg-config for what rbt_library() made.
function(rbt_install_package)
  include(CMakePackageConfigHelpers)
  get_property(libraries GLOBAL PROPERTY RBT_LIBRARIES)
  install(TARGETS ${libraries} EXPORT rbt DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT rbt NAMESPACE rbt:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rbt FILE rbt-targets.cmake)
  configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/rbt-config.cmake.in ${PROJECT_BINARY_DIR}/rbt-config.cmake
    INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rbt)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/rbt-config-version.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/rbt-config.cmake ${PROJECT_BINARY_DIR}/rbt-config-version.cmake
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/rbt)
  # Relative, so that the tree can be installed anywhere (cmake --install --prefix).
  file(RELATIVE_PATH RBT_PC_TO_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  foreach(name target initiator store-plugin)
    configure_file(${PROJECT_SOURCE_DIR}/cmake/rbt-${name}.pc.in ${PROJECT_BINARY_DIR}/rbt-${name}.pc @ONLY)
    install(FILES ${PROJECT_BINARY_DIR}/rbt-${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  endforeach()
endfunction()
