#include "tools/rbt-connect/map/busy.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>

#include "common/log.h"

namespace rbt::tools::map {

namespace fs = std::filesystem;

namespace {

std::string first_line(const fs::path& path) {
  std::ifstream stream(path);
  std::string line;
  std::getline(stream, line);
  return line;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator(); it.increment(error))
    names.push_back(it->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<pid_t> pid_of(std::string_view name) {
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return pid;
}

// The device and its partitions: what they are called and their numbers, "259:1".
struct Nodes {
  std::set<std::string> paths;
  std::set<std::string> numbers;
  std::vector<fs::path> folders;  // in sysfs
};

Nodes nodes_of(std::string_view device, const fs::path& root) {
  Nodes nodes;
  const std::string name(device.substr(device.rfind('/') + 1));
  const fs::path whole = root / "sys/block" / name;
  const auto add = [&](const std::string& each, const fs::path& folder) {
    nodes.paths.insert("/dev/" + each);
    if (std::string number = first_line(folder / "dev"); !number.empty()) nodes.numbers.insert(std::move(number));
    nodes.folders.push_back(folder);
  };
  add(name, whole);
  std::error_code error;
  for (const std::string& each : names_in(whole))
    if (each.starts_with(name) && fs::exists(whole / each / "partition", error)) add(each, whole / each);
  return nodes;
}

void add_holders(const Nodes& nodes, const fs::path& root, std::vector<std::string>& users) {
  for (const fs::path& folder : nodes.folders)
    for (const std::string& holder : names_in(folder / "holders")) {
      const std::string mapper = first_line(root / "sys/block" / holder / "dm/name");
      users.push_back(mapper.empty() ? fmt::format("{} is made of it", holder)
                                     : fmt::format("{} ({}) is made of it", holder, printable(mapper, 80)));
    }
  for (const std::string& name : names_in(root / "sys/block"))
    if (name.starts_with("loop") && nodes.paths.contains(first_line(root / "sys/block" / name / "loop/backing_file")))
      users.push_back(fmt::format("{} is made of it", name));
}

void add_swaps(const Nodes& nodes, const fs::path& root, std::vector<std::string>& users) {
  std::ifstream stream(root / "proc/swaps");
  for (std::string line; std::getline(stream, line);)
    if (const std::string path = line.substr(0, line.find_first_of(" \t")); nodes.paths.contains(path))
      users.push_back(fmt::format("{} is swap space", path));
}

// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue": the third and the fifth, and, for
// filesystems with numbers of their own, the second behind the dash.
void add_mounts(const fs::path& mountinfo, const Nodes& nodes, std::set<std::string>& mounts) {
  std::ifstream stream(mountinfo);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream words(line);
    std::string skipped;
    std::string number;
    std::string point;
    words >> skipped >> skipped >> number >> skipped >> point;
    std::string source;
    if (const auto dash = line.find(" - "); dash != std::string::npos) {
      std::istringstream behind(line.substr(dash + 3));
      behind >> skipped >> source;
    }
    if (nodes.numbers.contains(number) || nodes.paths.contains(source)) mounts.insert(point);
  }
}

// Without asking a server: a descriptor may be one of a filesystem that hangs.
bool is_open_device(const fs::path& descriptor, const Nodes& nodes) {
  std::error_code error;
  if (nodes.paths.contains(fs::read_symlink(descriptor, error).string())) return true;
  struct statx about {};
  if (::statx(AT_FDCWD, descriptor.c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &about) != 0 || !S_ISBLK(about.stx_mode))
    return false;
  return nodes.numbers.contains(fmt::format("{}:{}", about.stx_rdev_major, about.stx_rdev_minor));
}

void add_processes(const Nodes& nodes, const Looking& looking, std::vector<std::string>& users) {
  std::set<std::string> mounts;
  std::set<std::string> seen_worlds;
  std::vector<std::string> openers;
  const fs::path proc = looking.root / "proc";
  for (const std::string& name : names_in(proc)) {
    const auto pid = pid_of(name);
    if (!pid) continue;
    std::error_code error;
    const std::string world = fs::read_symlink(proc / name / "ns/mnt", error).string();
    if (error || seen_worlds.insert(world).second) add_mounts(proc / name / "mountinfo", nodes, mounts);
    if (std::find(looking.except.begin(), looking.except.end(), *pid) != looking.except.end()) continue;
    for (const std::string& fd : names_in(proc / name / "fd"))
      if (is_open_device(proc / name / "fd" / fd, nodes)) {
        openers.push_back(
            fmt::format("process {} ({}) has it open", *pid, printable(first_line(proc / name / "comm"), 40)));
        break;
      }
  }
  for (const std::string& point : mounts)
    users.push_back(fmt::format("it is mounted on {}", printable(point)));
  users.insert(users.end(), openers.begin(), openers.end());
}

// Mounts, device mapper, md, swap: whoever is in the kernel has claimed it.
bool claimed(const std::string& device) {
  const int fd = ::open(device.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return errno == EBUSY;
  ::close(fd);
  return false;
}

}  // namespace

std::vector<std::string> users_of(std::string_view device, const Looking& looking) {
  const Nodes nodes = nodes_of(device, looking.root);
  std::vector<std::string> users;
  add_holders(nodes, looking.root, users);
  add_swaps(nodes, looking.root, users);
  add_processes(nodes, looking, users);
  if (users.empty() && looking.open)
    for (const std::string& path : nodes.paths)
      if (claimed((looking.root / path.substr(1)).string()))
        users.push_back(fmt::format("something in the kernel has claimed {}", path));
  return users;
}

bool passing(const std::vector<std::string>& users) {
  return !users.empty() && std::all_of(users.begin(), users.end(), [](const std::string& each) {
    return each.find("(udev-worker)") != std::string::npos || each.find("(systemd-udevd)") != std::string::npos;
  });
}

std::string in_use_text(std::string_view device, const std::vector<std::string>& users) {
  constexpr std::size_t kMost = 10;
  std::string text = fmt::format("{} is in use: ", device);
  for (std::size_t i = 0; i < std::min(users.size(), kMost); ++i)
    text += (i == 0 ? "" : ", ") + users[i];
  if (users.size() > kMost) text += fmt::format(", and {} more", users.size() - kMost);
  return text;
}

}  // namespace rbt::tools::map
