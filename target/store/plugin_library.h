#pragma once
// A shared library with a store in it: loaded, and found to fit.

#include <memory>
#include <string>

#include "common/result.h"
#include "target/store/rbt_store_plugin.h"

namespace rbt::target {

/// What the library exports, with what it does not know of null. Unloads it at the end.
class PluginLibrary {
 public:
  /// `path` is a file: nothing is searched for. Errors say what was expected and what was seen.
  [[nodiscard]] static Result<PluginLibrary> load(const std::string& path);

  /// The same from what the library's entry gave: for tests.
  [[nodiscard]] static Result<struct rbt_store_plugin> check_table(const std::string& path,
                                                                   const struct rbt_store_plugin* table);

  [[nodiscard]] const struct rbt_store_plugin& calls() const noexcept { return calls_; }

 private:
  struct Close {
    void operator()(void* handle) const noexcept;
  };
  std::unique_ptr<void, Close> handle_;
  struct rbt_store_plugin calls_ {};
};

}  // namespace rbt::target
