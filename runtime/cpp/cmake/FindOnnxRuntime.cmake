# Finds ONNX Runtime's C++ headers and library and makes OnnxRuntime::OnnxRuntime of them.
#
# ONNXRUNTIME_ROOT, a CMake or environment variable, says where: an unpacked release (include/, lib/), the release's
# archive itself (.tgz, .zip), which is unpacked into the build folder, or any folder with both. Without it the system is
# searched, where distributions put their package (Debian: libonnxruntime-dev).

include(FindPackageHandleStandardArgs)

if(NOT ONNXRUNTIME_ROOT AND DEFINED ENV{ONNXRUNTIME_ROOT})
  set(ONNXRUNTIME_ROOT "$ENV{ONNXRUNTIME_ROOT}")
endif()

set(OnnxRuntime_folders "")
if(ONNXRUNTIME_ROOT)
  get_filename_component(OnnxRuntime_folders "${ONNXRUNTIME_ROOT}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
  if(NOT EXISTS "${OnnxRuntime_folders}")  # given relative to where cmake was called
    get_filename_component(OnnxRuntime_folders "${ONNXRUNTIME_ROOT}" ABSOLUTE BASE_DIR "$ENV{PWD}")
  endif()
  if(NOT EXISTS "${OnnxRuntime_folders}")
    message(FATAL_ERROR "ONNXRUNTIME_ROOT=${ONNXRUNTIME_ROOT} does not exist; pass an unpacked ONNX Runtime release")
  endif()
  if(NOT IS_DIRECTORY "${OnnxRuntime_folders}")
    file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/onnxruntime")
    execute_process(
      COMMAND "${CMAKE_COMMAND}" -E tar xf "${OnnxRuntime_folders}"
      WORKING_DIRECTORY "${CMAKE_BINARY_DIR}/onnxruntime" RESULT_VARIABLE OnnxRuntime_unpacked)
    if(NOT OnnxRuntime_unpacked EQUAL 0)
      message(FATAL_ERROR "ONNXRUNTIME_ROOT=${ONNXRUNTIME_ROOT} is neither a folder nor an archive that can be unpacked")
    endif()
    file(GLOB OnnxRuntime_folders "${CMAKE_BINARY_DIR}/onnxruntime/*")  # releases hold one folder
  endif()
  set(OnnxRuntime_where HINTS ${OnnxRuntime_folders} NO_DEFAULT_PATH)
endif()

find_path(OnnxRuntime_INCLUDE_DIR onnxruntime_cxx_api.h ${OnnxRuntime_where}
  PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session onnxruntime onnxruntime/core/session)
find_library(OnnxRuntime_LIBRARY NAMES onnxruntime libonnxruntime.so.1 ${OnnxRuntime_where}
  PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}")

if(OnnxRuntime_INCLUDE_DIR AND EXISTS "${OnnxRuntime_INCLUDE_DIR}/onnxruntime_c_api.h")
  file(STRINGS "${OnnxRuntime_INCLUDE_DIR}/onnxruntime_c_api.h" OnnxRuntime_api REGEX "#define ORT_API_VERSION [0-9]+")
  string(REGEX REPLACE ".*ORT_API_VERSION ([0-9]+).*" "1.\\1" OnnxRuntime_VERSION "${OnnxRuntime_api}")
endif()

find_package_handle_standard_args(OnnxRuntime
  REQUIRED_VARS OnnxRuntime_LIBRARY OnnxRuntime_INCLUDE_DIR VERSION_VAR OnnxRuntime_VERSION
  REASON_FAILURE_MESSAGE "pass -DONNXRUNTIME_ROOT=..., an unpacked ONNX Runtime release (its folder has include/ and lib/)")

if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::OnnxRuntime)
  add_library(OnnxRuntime::OnnxRuntime UNKNOWN IMPORTED)
  set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES
    IMPORTED_LOCATION "${OnnxRuntime_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${OnnxRuntime_INCLUDE_DIR}")
endif()
mark_as_advanced(OnnxRuntime_INCLUDE_DIR OnnxRuntime_LIBRARY)
