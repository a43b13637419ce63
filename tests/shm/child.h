#pragma once
// Another process, and what this one has open.

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <vector>

namespace rbt::test {

/// Started by fork and exec; killed and reaped at the latest by the destructor.
class Child {
 public:
  explicit Child(const std::vector<std::string>& command);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Blocks until its standard output shows `line`; false if it ends without.
  [[nodiscard]] bool says(const std::string& line);
  void signal(int number) const;
  /// Blocks until it has ended: its exit status, or minus the signal that ended it.
  int wait();
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }

 private:
  pid_t pid_ = -1;
  int output_ = -1;
  std::string heard_;
};

[[nodiscard]] std::size_t open_descriptors();
/// Mappings of memfds in this process: /proc/self/maps.
[[nodiscard]] std::size_t memfd_mappings();

}  // namespace rbt::test
