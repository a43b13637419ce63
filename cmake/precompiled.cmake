# Precompiled headers: only those of the standard library and of third parties, so that nothing of ours makes them stale.
# They save a third of the time of a build. The release preset has them for the tests only, so that a file of the libraries or the
# programs which relies on what they happen to include is found.
#
# Not CMake's own target_precompile_headers(): through ccache, one tree is to have what another has compiled, so what goes into
# ccache's hash must be the same in all trees. clang's precompiled file is, byte by byte, if it is made from standard input in /.
# gcc's never is (it holds uninitialised bytes); ccache hashes the file .sum beside it instead, of the preprocessed headers.
set(RBT_PRECOMPILE OFF CACHE STRING "Precompile the headers of the standard library, fmt and Catch2: OFF, TESTS (for them only), ON")
set(RBT_TEST_FLAGS "" CACHE STRING "Compiler flags for the tests' own files, after all others")

set(rbt_code_headers
  algorithm array atomic bit cerrno charconv chrono compare cstddef cstdint cstdlib cstring deque functional map memory mutex
  optional span string string_view thread utility variant vector fmt/format.h tl/expected.hpp)
set(rbt_test_headers ${rbt_code_headers} fstream catch2/catch.hpp)

# Flags that code (libraries, programs) and tests are each compiled with. What shares precompiled headers must share flags.
add_library(rbt_code_flags INTERFACE)
target_link_libraries(rbt_code_flags INTERFACE rbt_build_flags)
add_library(rbt_test_flags INTERFACE)
target_link_libraries(rbt_test_flags INTERFACE rbt_build_flags)
separate_arguments(test_flags NATIVE_COMMAND "${RBT_TEST_FLAGS}")
target_compile_options(rbt_test_flags INTERFACE ${test_flags})
# Assertions without a try block each: rbt throws nothing, and the blocks are a third of what a test takes to compile.
target_compile_options(rbt_test_flags INTERFACE -DCATCH_CONFIG_FAST_COMPILE)

function(rbt_make_precompiled kind)
  set(header ${PROJECT_BINARY_DIR}/precompiled/${kind}.h)
  list(TRANSFORM rbt_${kind}_headers REPLACE "(.+)" "#include <\\1>\n" OUTPUT_VARIABLE content)
  list(JOIN content "" content)
  file(CONFIGURE OUTPUT ${header} CONTENT "${content}")
  separate_arguments(flags NATIVE_COMMAND "${CMAKE_CXX_FLAGS}")
  set(options $<TARGET_PROPERTY:rbt_${kind}_flags,INTERFACE_COMPILE_OPTIONS>)
  get_target_property(definitions fmt::fmt INTERFACE_COMPILE_DEFINITIONS)
  list(TRANSFORM definitions PREPEND -D)
  set(command ${CMAKE_CXX_COMPILER} ${definitions} ${flags} ${options} -std=c++20 -x c++-header)
  if(CMAKE_CXX_COMPILER_ID STREQUAL Clang)
    set(output ${header}.pch)
    add_custom_command(OUTPUT ${output} DEPENDS ${header} DEPFILE ${output}.d WORKING_DIRECTORY / VERBATIM COMMAND_EXPAND_LISTS
      COMMAND ${command} -Xclang -fno-pch-timestamp -fpch-instantiate-templates -MD -MT ${output} -MF ${output}.d
              -Xclang -emit-pch - -o - < ${header} > ${output})
    set(use -include-pch ${output})
  else()
    set(output ${header}.gch)
    add_custom_command(OUTPUT ${output} ${output}.sum DEPENDS ${header} DEPFILE ${output}.d VERBATIM COMMAND_EXPAND_LISTS
      COMMAND ${command} -E -P -dD ${header} | sha256sum > ${output}.sum
      COMMAND ${command} -MD -MT ${output} -MF ${output}.d -c ${header} -o ${output})
    set(use -Winvalid-pch -include ${header})
  endif()
  add_custom_target(rbt_precompiled_${kind} DEPENDS ${output})
  set(rbt_precompiled_${kind} "${use}" PARENT_SCOPE)
  set(rbt_precompiled_${kind}_file ${output} PARENT_SCOPE)
endfunction()

set(rbt_precompile_code OFF)
set(rbt_precompile_test OFF)
if(RBT_PRECOMPILE STREQUAL TESTS)
  set(rbt_precompile_test ON)
elseif(RBT_PRECOMPILE)
  set(rbt_precompile_code ON)
  set(rbt_precompile_test ON)
endif()
foreach(kind code test)
  if(rbt_precompile_${kind})
    rbt_make_precompiled(${kind})
  endif()
endforeach()

# rbt_compiled_as(TARGET code|test): with the flags of its kind, and its precompiled headers if there are any.
function(rbt_compiled_as target kind)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:rbt_${kind}_flags>)
  if(rbt_precompile_${kind})
    target_compile_options(${target} PRIVATE ${rbt_precompiled_${kind}})
    add_dependencies(${target} rbt_precompiled_${kind})
    # compilers do not name it among what they have read
    get_target_property(sources ${target} SOURCES)
    set_property(SOURCE ${sources} APPEND PROPERTY OBJECT_DEPENDS ${rbt_precompiled_${kind}_file})
  endif()
endfunction()
