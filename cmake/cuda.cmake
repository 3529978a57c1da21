# The module _cuda. FUSEDRNN_CUDA, or the environment variable of this name where it is not given:
#   OFF       without it; nothing of CUDA is looked for
#   ON        nvcc has to be there
#   EMULATED  for tests: the same module and kernels on the CPU, built by the C++ compiler alone

set(default OFF)
if(NOT "$ENV{FUSEDRNN_CUDA}" STREQUAL "")
    set(default "$ENV{FUSEDRNN_CUDA}")
endif()
set(FUSEDRNN_CUDA "${default}" CACHE STRING "The GPU module: OFF, ON, or EMULATED (on the CPU, for tests)")
set_property(CACHE FUSEDRNN_CUDA PROPERTY STRINGS OFF ON EMULATED)
if(NOT FUSEDRNN_CUDA MATCHES "^(OFF|ON|EMULATED)$")
    message(FATAL_ERROR "FUSEDRNN_CUDA: expected OFF, ON or EMULATED, got ${FUSEDRNN_CUDA}")
endif()

option(FUSEDRNN_CUDA_HALVES
       "Step and persistent kernels, most of nvcc's time, for sm_80 or sm_90a by turns: for checks alone" OFF)
option(FUSEDRNN_CUDA_REPORTS "Keep what the assembler says of the kernels, for tools/check_cuda_resources.py" OFF)

if(FUSEDRNN_CUDA STREQUAL "OFF")
    message(STATUS "fusedrnn: without CUDA; FUSEDRNN_CUDA=ON adds it and about 4 minutes on 2 cores")
    return()
endif()
if(FUSEDRNN_CUDA STREQUAL "ON")
    find_program(FUSEDRNN_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(FUSEDRNN_NVCC AND NOT DEFINED ENV{CUDACXX})
        set(ENV{CUDACXX} "${FUSEDRNN_NVCC}")
    endif()
    set(problem "found none in CUDACXX, PATH, CUDA_HOME, CUDA_PATH or /usr/local/cuda")
    if(CMAKE_CUDA_COMPILER OR FUSEDRNN_NVCC OR DEFINED ENV{CUDACXX})
        include(CheckLanguage)
        check_language(CUDA)
        set(problem "found one that compiles nothing")
    endif()
    if(CMAKE_CUDA_COMPILER)
        enable_language(CUDA)
        set(problem "")
        if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
            set(problem "got ${CMAKE_CUDA_COMPILER_VERSION}")
        endif()
    endif()
    if(problem)
        message(FATAL_ERROR "FUSEDRNN_CUDA: expected nvcc >= 12.4 for ON, ${problem}; install the CUDA toolkit, "
                            "or use OFF")
    endif()
endif()
message(STATUS "fusedrnn: with CUDA (${FUSEDRNN_CUDA}), about 4 minutes more on 2 cores")

# ---- everything of the module but its kernels ----------------------------------------------------------

# The platform: the folder that implements the device layer, runtime.h and bindings/device.h.
if(FUSEDRNN_CUDA STREQUAL "EMULATED")
    set(cuda_platform tests/cuda/emulator)
else()
    set(cuda_platform cuda/gpu)
endif()
file(GLOB cuda_binding_sources CONFIGURE_DEPENDS cuda/bindings/*.cpp ${cuda_platform}/bindings/*.cpp)
pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda_binding_sources} csrc/bindings/arrays.cpp
                    csrc/bindings/fork_safe_mutex.cpp csrc/bindings/optimiser_options.cpp)
target_link_libraries(_cuda PRIVATE fusedrnn_options Threads::Threads)
# As in _core; the drivers of a GPU, which come below, do without pybind11.
set_target_properties(_cuda PROPERTIES UNITY_BUILD ON)
target_compile_options(
    _cuda PRIVATE "SHELL:-iquote \"${CMAKE_CURRENT_SOURCE_DIR}\""
                  "SHELL:-iquote \"${CMAKE_CURRENT_SOURCE_DIR}/${cuda_platform}/include\""
                  "SHELL:-iquote \"${CMAKE_CURRENT_SOURCE_DIR}/cuda\"")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC sees an overlap in std::string's own operator+ (GCC bug 105651).
    target_compile_options(_cuda PRIVATE -Wno-restrict)
endif()
target_compile_definitions(_cuda PRIVATE FUSEDRNN_ISA=cuda FUSEDRNN_VERSION="${SKBUILD_PROJECT_VERSION_FULL}"
                                         FUSEDRNN_CUDA_TARGETS="sm_80, sm_90a, PTX 8.0")
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(cuda_exports "${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports_cuda.map")
    target_link_options(_cuda PRIVATE "LINKER:--version-script=${cuda_exports}")
    set_target_properties(_cuda PROPERTIES LINK_DEPENDS "${cuda_exports}")
endif()
install(TARGETS _cuda LIBRARY DESTINATION ${FUSEDRNN_CUDA_PACKAGE})

# ---- the drivers and kernels ---------------------------------------------------------------------------

if(FUSEDRNN_CUDA STREQUAL "EMULATED")
    if(NOT TARGET cuda_emulated)
        add_subdirectory(tests/cuda/emulator)
    endif()
    target_link_libraries(_cuda PRIVATE cuda_emulated)
    return()
endif()

file(GLOB cuda_driver_sources CONFIGURE_DEPENDS cuda/*.cpp ${cuda_platform}/*.cpp)
target_sources(_cuda PRIVATE ${cuda_driver_sources})
set_source_files_properties(${cuda_driver_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
# sm_90a has instructions that no other device has; every later device takes the PTX.
set(CMAKE_CUDA_ARCHITECTURES OFF)
file(GLOB cuda_kernel_sources CONFIGURE_DEPENDS cuda/instances/*.cu)
add_library(cuda_kernels OBJECT ${cuda_kernel_sources})
set_target_properties(cuda_kernels PROPERTIES CUDA_VISIBILITY_PRESET hidden)
if(FUSEDRNN_CUDA_REPORTS)
    set(keep "${CMAKE_CURRENT_SOURCE_DIR}/tools/check_cuda_resources.py" --keep)
    set_target_properties(cuda_kernels PROPERTIES CUDA_COMPILER_LAUNCHER "${Python_EXECUTABLE};${keep}")
endif()
target_compile_definitions(cuda_kernels PRIVATE FUSEDRNN_ISA=cuda)
target_compile_options(
    cuda_kernels
    PRIVATE "SHELL:-Xcompiler -iquote -Xcompiler \"${CMAKE_CURRENT_SOURCE_DIR}\""
            "SHELL:-Xcompiler -iquote -Xcompiler \"${CMAKE_CURRENT_SOURCE_DIR}/${cuda_platform}/include\""
            "SHELL:-Xcompiler -iquote -Xcompiler \"${CMAKE_CURRENT_SOURCE_DIR}/cuda\""
            "SHELL:-Xcompiler -iquote -Xcompiler \"${CMAKE_CURRENT_SOURCE_DIR}/csrc\""
            # As on the CPU: a multiply and an add become one only where the source says fma.
            --fmad=false $<$<BOOL:${FUSEDRNN_WERROR}>:--Werror=all-warnings>)
set(sm_80 -gencode=arch=compute_80,code=[sm_80,compute_80])
set(sm_90a -gencode=arch=compute_90a,code=sm_90a)
set_source_files_properties(${cuda_kernel_sources} PROPERTIES COMPILE_OPTIONS "${sm_80};${sm_90a}")
if(FUSEDRNN_CUDA_HALVES)
    # Modes whose kernels are alike but for an instruction are in different halves.
    foreach(family IN ITEMS "" persistent_)
        set_source_files_properties(cuda/instances/${family}fp16.cu cuda/instances/${family}tf32x3.cu
                                    PROPERTIES COMPILE_OPTIONS "${sm_80}")
        set_source_files_properties(cuda/instances/${family}bf16.cu cuda/instances/${family}tf32.cu
                                    PROPERTIES COMPILE_OPTIONS "${sm_90a}")
    endforeach()
endif()
target_sources(_cuda PRIVATE $<TARGET_OBJECTS:cuda_kernels>)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
