#include "target/store/plugin_library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace rbt::target {

namespace {

constexpr const char* kEntry = "rbt_store_plugin_entry";
// Version 1 as it was first installed: what came later may be missing.
constexpr std::size_t kSizeLeast = offsetof(struct rbt_store_plugin, execute) + sizeof(void*);

Error unfit(const std::string& path, std::string_view what) {
  return {ErrorKind::unsupported,
          fmt::format("plugin '{}': {}; it is written against target/store/rbt_store_plugin.h", path, what)};
}

std::string last_dl_error() {
  const char* const text = ::dlerror();
  return text != nullptr ? text : "no reason given";
}

}  // namespace

void PluginLibrary::Close::operator()(void* handle) const noexcept {
  ::dlclose(handle);
}

Result<struct rbt_store_plugin> PluginLibrary::check_table(const std::string& path,
                                                           const struct rbt_store_plugin* table) {
  if (table == nullptr) return failure(unfit(path, fmt::format("{}() returned nothing, a table is expected", kEntry)));
  if (table->struct_size < offsetof(struct rbt_store_plugin, name))
    return failure(unfit(path, fmt::format("its table says that it has {} bytes, at least {} are expected",
                                           table->struct_size, kSizeLeast)));
  if (table->version != RBT_STORE_PLUGIN_VERSION)
    return failure(unfit(path, fmt::format("it is of version {}, version {} is expected: build it again with the "
                                           "header of this rbt",
                                           table->version, RBT_STORE_PLUGIN_VERSION)));
  if (table->struct_size < kSizeLeast)
    return failure(unfit(path, fmt::format("its table has {} bytes, at least {} are expected in version {}",
                                           table->struct_size, kSizeLeast, RBT_STORE_PLUGIN_VERSION)));
  struct rbt_store_plugin calls {};
  std::memcpy(&calls, table, std::min(table->struct_size, sizeof calls));
  std::string missing;
  const auto need = [&](bool there, const char* name) {
    if (!there) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", name);
  };
  need(calls.name != nullptr, "name");
  need(calls.open != nullptr, "open");
  need(calls.close != nullptr, "close");
  need(calls.describe != nullptr, "describe");
  need(calls.submit != nullptr || calls.execute != nullptr, "submit or execute");
  need((calls.open_queue == nullptr) == (calls.close_queue == nullptr), "one of open_queue and close_queue");
  if (!missing.empty()) return failure(unfit(path, fmt::format("its table has null where {} is expected", missing)));
  return calls;
}

Result<PluginLibrary> PluginLibrary::load(const std::string& path) {
  if (::access(path.c_str(), R_OK) != 0)
    return errno_failure(errno, fmt::format("plugin '{}'", path), "the path of a shared library is expected");
  PluginLibrary library;
  // A name without a '/' would be looked for in the system's folders.
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  library.handle_.reset(::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (library.handle_ == nullptr)
    return failure(
        ErrorKind::unsupported,
        fmt::format("plugin '{}': it cannot be loaded: {}; a shared library for this machine is expected, with "
                    "all that it needs",
                    path, printable(last_dl_error(), 512)));
  void* const symbol = ::dlsym(library.handle_.get(), kEntry);
  if (symbol == nullptr)
    return failure(unfit(path, fmt::format("it has no symbol {}, which every store plugin exports", kEntry)));
  const auto entry = reinterpret_cast<const struct rbt_store_plugin* (*)()>(symbol);
  auto calls = check_table(path, entry());
  if (!calls) return failure(std::move(calls.error()));
  library.calls_ = *calls;
  return library;
}

}  // namespace rbt::target
