# The option LLM_DECODER_CUDA: whether the GPU kernels are compiled for NVIDIA devices, and for which.
#
#   auto  where nvcc and a device are, for that device alone
#   on    sm_80, sm_89, sm_90a, and PTX of compute_90, which the drivers of later devices translate (that of compute_90a
#         they would not)
#   off   not at all
#
# Sets LLM_DECODER_CUDA_TARGETS, a list such as sm_80;sm_90a;compute_90, empty where nothing is compiled.
set(LLM_DECODER_CUDA auto CACHE STRING "Compile the GPU kernels for NVIDIA devices: auto, on or off")
set_property(CACHE LLM_DECODER_CUDA PROPERTY STRINGS auto on off)
string(TOLOWER "${LLM_DECODER_CUDA}" cuda_choice)
if(NOT cuda_choice MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "LLM_DECODER_CUDA must be auto, on or off, got '${LLM_DECODER_CUDA}'")
endif()

# sm_<capability> of every device of this machine; empty where there is no driver.
function(find_cuda_devices result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET)
  set(found)
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+[.][0-9]" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    foreach(capability ${capabilities})
      if(capability VERSION_GREATER_EQUAL 8.0)
        string(REPLACE "." "" number ${capability})
        list(APPEND found sm_${number})
      endif()
    endforeach()
    list(TRANSFORM found REPLACE "^sm_90$" sm_90a)
  endif()
  set(${result} ${found} PARENT_SCOPE)
endfunction()

set(LLM_DECODER_CUDA_TARGETS)
if(cuda_choice STREQUAL on)
  set(LLM_DECODER_CUDA_TARGETS sm_80 sm_89 sm_90a compute_90)
elseif(cuda_choice STREQUAL auto AND NOT CMAKE_CROSSCOMPILING)
  find_cuda_devices(LLM_DECODER_CUDA_TARGETS)
endif()

if(LLM_DECODER_CUDA_TARGETS)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # target_cuda_sources names them
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  elseif(cuda_choice STREQUAL on)
    message(FATAL_ERROR "LLM_DECODER_CUDA=on needs nvcc, on the PATH or as CUDACXX; LLM_DECODER_CUDA=off builds without")
  else()
    set(LLM_DECODER_CUDA_TARGETS)
  endif()
endif()
message(STATUS "LLM_DECODER_CUDA=${cuda_choice}: ${LLM_DECODER_CUDA_TARGETS}")

# Adds sources that nvcc compiles for the devices of `cuda_targets`. Those that the host's compiler compiles too, for
# another target, have one language only a folder: here each comes through a file of its own. Beside each object lies what
# ptxas says of its kernels, <object>.ptxas.
function(target_cuda_sources target cuda_targets)
  foreach(source ${ARGN})
    get_filename_component(path ${source} ABSOLUTE)
    get_filename_component(stem ${source} NAME_WE)
    set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/${target}/${stem}.cu)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${path}\"\n")
    target_sources(${target} PRIVATE ${wrapper})
  endforeach()
  set(options --expt-relaxed-constexpr -Xptxas=-v)
  foreach(cuda_target ${cuda_targets})
    string(REGEX REPLACE "^[a-z]+" compute arch ${cuda_target})
    list(APPEND options -gencode=arch=${arch},code=${cuda_target})
  endforeach()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${options}>")
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES OFF
                        CUDA_COMPILER_LAUNCHER "sh;${PROJECT_SOURCE_DIR}/cmake/keep_ptxas_report.sh")
endfunction()

# Lists the objects with the kernels of `target`, whose reports tools/kernel_registers.py reads.
function(list_kernel_objects target)
  file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/kernel_objects.txt
       CONTENT "$<JOIN:$<FILTER:$<TARGET_OBJECTS:${target}>,INCLUDE,[.]cu[.]o$>,\n>\n")
endfunction()
