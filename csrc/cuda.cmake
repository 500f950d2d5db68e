# The CUDA kernels, a library of their own (libcompcomm_cuda.so): built where nvcc is found. CC_BUILD_CUDA, a CMake
# variable or in the environment: auto (default; without nvcc, or where it fails, the rest is built without it), on (then
# that is an error), off.
if(NOT DEFINED CC_BUILD_CUDA AND DEFINED ENV{CC_BUILD_CUDA})
  set(wanted "$ENV{CC_BUILD_CUDA}")
elseif(DEFINED CC_BUILD_CUDA)
  set(wanted "${CC_BUILD_CUDA}")
else()
  set(wanted auto)
endif()
string(TOLOWER "${wanted}" wanted)
if(NOT wanted MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "CC_BUILD_CUDA=${wanted}: choose auto, on or off")
endif()
if(wanted STREQUAL "off")
  message(STATUS "compcomm: no CUDA kernels (CC_BUILD_CUDA=off)")
  return()
endif()

find_program(CC_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT CC_NVCC)
  if(wanted STREQUAL "on")
    message(FATAL_ERROR "CC_BUILD_CUDA=on, but nvcc is not there: install CUDA's toolkit, put nvcc on the PATH or name "
                        "its folder in CUDA_HOME; or build without CUDA kernels: CC_BUILD_CUDA=off")
  endif()
  message(STATUS "compcomm: no CUDA kernels, nvcc is not there")
  return()
endif()

# Machine code for A100 and H100, and PTX for what comes after them. As on the CPU, floats are never contracted, and
# divisions and roots are rounded correctly. CUDA's runtime is linked in: the library loads where there is none.
set(CC_CUDA_CODE -O3 -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=[sm_90,compute_90]
    CACHE STRING "for a test of what compiles -O1 and one of them, in a quarter of the time")
set(flags -std=c++17 ${CC_CUDA_CODE} -shared -Xcompiler=-fPIC,-fvisibility=hidden -cudart=static --threads=2
    -fmad=false -prec-div=true -prec-sqrt=true -ftz=false -ccbin=${CMAKE_CXX_COMPILER})
file(GLOB cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu")
file(GLOB cuda_headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.h"
     "${CMAKE_CURRENT_SOURCE_DIR}/include/*.h")
set(cuda_library "${CMAKE_CURRENT_BINARY_DIR}/libcompcomm_cuda.so")
set(cuda_stamp "${CMAKE_CURRENT_BINARY_DIR}/cuda.stamp")
if(wanted STREQUAL "auto")  # whatever nvcc dislikes (often the host's compiler), the rest is built
  set(otherwise || "${CMAKE_COMMAND}" -E echo
      "compcomm: nvcc failed, see above: no CUDA kernels (CC_BUILD_CUDA=on makes that an error, =off is quiet)")
endif()
add_custom_command(
  OUTPUT "${cuda_stamp}"
  COMMAND "${CMAKE_COMMAND}" -E rm -f "${cuda_library}"
  COMMAND "${CC_NVCC}" ${flags} "-I${CMAKE_CURRENT_SOURCE_DIR}/include" -o "${cuda_library}" ${cuda_sources}
          ${otherwise}
  COMMAND "${CMAKE_COMMAND}" -E touch "${cuda_stamp}"
  DEPENDS ${cuda_sources} ${cuda_headers}
  COMMENT "Compiling the CUDA kernels"
  VERBATIM)
add_custom_target(compcomm_cuda ALL DEPENDS "${cuda_stamp}")
if(DEFINED SKBUILD)
  install(FILES "${cuda_library}" DESTINATION compcomm/_lib OPTIONAL)
endif()
