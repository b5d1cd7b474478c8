# Cross-compiles for 64-bit ARM Linux; ctest runs what was built under qemu-user.
# cmake -S . -B build-arm --toolchain cmake/aarch64-linux-gnu.cmake        Debian: g++-aarch64-linux-gnu qemu-user
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# Programs of the host, libraries and headers of the target.
list(APPEND CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)  # a Python of the target may stand before it
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
