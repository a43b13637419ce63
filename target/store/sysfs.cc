#include "target/store/sysfs.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>

namespace rbt::target {

namespace {

std::string directory(dev_t device) {
  return fmt::format("/sys/dev/block/{}:{}", major(device), minor(device));
}

std::optional<std::string> read_text(const std::string& path) {
  std::ifstream file(path);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string::npos) return std::nullopt;
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

}  // namespace

std::optional<std::string> device_attribute(dev_t device, std::string_view attribute) {
  return read_text(fmt::format("{}/{}", directory(device), attribute));
}

std::optional<std::string> character_device_attribute(dev_t device, std::string_view attribute) {
  return read_text(fmt::format("/sys/dev/char/{}:{}/{}", major(device), minor(device), attribute));
}

std::optional<std::string> disk_attribute(dev_t device, std::string_view attribute) {
  if (!device_attribute(device, "partition")) return device_attribute(device, attribute);
  return read_text(fmt::format("{}/../{}", directory(device), attribute));
}

std::optional<std::uint64_t> disk_number(dev_t device, std::string_view attribute) {
  const auto text = disk_attribute(device, attribute);
  if (!text) return std::nullopt;
  std::uint64_t value = 0;
  const auto [stop, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || stop != text->data() + text->size()) return std::nullopt;
  return value;
}

std::vector<std::string> device_users(dev_t device) {
  std::vector<std::string> users;
  // proc_pid_mountinfo(5): "36 35 98:0 /root /mount/point options - type source options"
  std::ifstream mounts("/proc/self/mountinfo");
  const std::string wanted = fmt::format("{}:{}", major(device), minor(device));
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, number, root, place;
    if (fields >> id >> parent >> number >> root >> place && number == wanted) users.push_back("mounted on " + place);
  }
  if (DIR* const holders = ::opendir((directory(device) + "/holders").c_str()); holders != nullptr) {
    while (const dirent* const entry = ::readdir(holders))
      if (entry->d_name[0] != '.') users.push_back(fmt::format("part of {}", entry->d_name));
    ::closedir(holders);
  }
  return users;
}

}  // namespace rbt::target
