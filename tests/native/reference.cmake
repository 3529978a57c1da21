# reference_cells: the reference of tests/reference.py as a library, for the checks without Python.
include_guard(GLOBAL)

if(NOT Python_EXECUTABLE)
    find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
endif()
set(native "${PROJECT_SOURCE_DIR}/tests/native")
set(cells "${PROJECT_BINARY_DIR}/reference/reference_cells.h")
add_custom_command(OUTPUT "${cells}"
                   COMMAND "${Python_EXECUTABLE}" "${native}/generate_reference.py" "${cells}"
                   DEPENDS "${native}/generate_reference.py" "${PROJECT_SOURCE_DIR}/tests/reference.py")
add_library(reference_cells STATIC "${native}/reference.cpp" "${cells}")
target_include_directories(reference_cells PUBLIC "${native}" PRIVATE "${PROJECT_BINARY_DIR}/reference")
target_link_libraries(reference_cells PRIVATE fusedrnn_options)
