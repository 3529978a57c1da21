# The CUDA kernels and their drivers as C++, and the emulator that runs them: what tests/cuda and the module
# _cuda of FUSEDRNN_CUDA=EMULATED are both made of.
include_guard(GLOBAL)

file(GLOB emulator_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/emulator/*.cpp")
add_library(cuda_emulator STATIC ${emulator_sources})
target_link_libraries(cuda_emulator PUBLIC fusedrnn_options Threads::Threads)
target_compile_definitions(cuda_emulator PUBLIC FUSEDRNN_CUDA_EMULATOR=1 FUSEDRNN_ISA=cuda)
target_compile_options(cuda_emulator PUBLIC "SHELL:-iquote \"${PROJECT_SOURCE_DIR}/cuda\"")

file(GLOB kernel_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/instances/*.cu")
file(GLOB driver_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/*.cpp")
list(REMOVE_ITEM driver_sources "${PROJECT_SOURCE_DIR}/cuda/runtime.cpp")
# -O1: optimised further, the kernels' unrolled loops take longer to compile than all tests take to run.
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -O1)
add_library(cuda_emulated OBJECT ${driver_sources} ${kernel_sources})
target_link_libraries(cuda_emulated PUBLIC cuda_emulator)
