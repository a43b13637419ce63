#include "common/result.h"

#include <catch2/catch.hpp>
#include <cerrno>

using namespace rbt;

TEST_CASE("An error from the kernel names what was tried, the errno and the remedy") {
  const Error error = Error::from_errno(EACCES, "opening /dev/x", "run as the owner of it");
  CHECK(error.kind() == ErrorKind::permission);
  CHECK(error.message() == "opening /dev/x: Permission denied (EACCES); run as the owner of it");
}

TEST_CASE("An error seen from further out says where") {
  CHECK(Error(ErrorKind::io, "short read").within("--store file:/x").message() == "--store file:/x: short read");
}
