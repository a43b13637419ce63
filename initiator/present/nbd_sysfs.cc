#include "initiator/present/nbd_sysfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstring>

#include "initiator/present/nbd_device.h"

namespace rbt::initiator {

namespace nbd {

namespace {

std::string path_of(std::uint32_t number, std::string_view name) {
  return fmt::format("/sys/block/nbd{}/{}", number, name);
}

template <typename T>
std::optional<T> parse(std::string_view text) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// Calls `each` with the name of every entry.
template <typename Each>
void for_each_entry(const std::string& path, Each each) {
  DIR* const directory = ::opendir(path.c_str());
  if (directory == nullptr) return;
  while (const dirent* const entry = ::readdir(directory))
    each(std::string_view(entry->d_name));
  ::closedir(directory);
}

}  // namespace

std::optional<std::string> read_attribute(std::uint32_t number, std::string_view name) {
  const int fd = ::open(path_of(number, name).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  std::array<char, 512> text{};
  const ssize_t got = ::read(fd, text.data(), text.size());
  ::close(fd);
  if (got < 0) return std::nullopt;
  const std::string_view all(text.data(), static_cast<std::size_t>(got));
  return std::string(all.substr(0, all.find('\n')));
}

bool write_attribute(std::uint32_t number, std::string_view name, std::string_view value) {
  const int fd = ::open(path_of(number, name).c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool written = ::write(fd, value.data(), value.size()) == static_cast<ssize_t>(value.size());
  ::close(fd);
  return written;
}

bool in_use(std::uint32_t number) {
  return ::access(path_of(number, "pid").c_str(), F_OK) == 0;
}

std::uint32_t queues(std::uint32_t number) {
  std::uint32_t count = 0;
  for_each_entry(path_of(number, "mq"), [&](std::string_view name) { count += name.front() == '.' ? 0U : 1U; });
  return count;
}

}  // namespace nbd

std::vector<NbdDeviceInfo> list_nbd() {
  std::vector<NbdDeviceInfo> out;
  nbd::for_each_entry("/sys/block", [&](std::string_view name) {
    if (!name.starts_with("nbd")) return;
    const auto number = nbd::parse<std::uint32_t>(name.substr(3));
    if (!number) return;
    const auto pid = nbd::read_attribute(*number, "pid");
    if (!pid) return;
    const auto sectors = nbd::parse<std::uint64_t>(nbd::read_attribute(*number, "size").value_or(""));
    out.push_back({.number = *number,
                   .pid = nbd::parse<std::uint32_t>(*pid).value_or(0),
                   .identifier = nbd::read_attribute(*number, "backend").value_or(""),
                   .size = Bytes(sectors.value_or(0) * 512)});
  });
  return out;
}

}  // namespace rbt::initiator
