#pragma once
// /etc/rbt/rbttab: the volumes that this machine has whenever it runs. One a line, as nbdtab and rbdmap have it:
//
//   # NAME  URI[,URI...]                                                 OPTIONS
//   disk    nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1           via=ublk,queues=2,on-loss=30
//   backup  nvme+rdma://10.0.0.2/nqn.2026-01.io.example:b/1,nvme+rdma://10.0.1.2/nqn.2026-01.io.example:b/1

#include <filesystem>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "tools/rbt-connect/map/options.h"

namespace rbt::tools::map {

/// RBT_TAB, or /etc/rbt/rbttab.
[[nodiscard]] std::filesystem::path rbttab_path();

/// Fields are separated by blanks, what follows a '#' at the start of a field is a comment. Commas within a URI are %2C. Error:
/// invalid_argument, "FILE:LINE:COLUMN: what is wrong, what is allowed"; the first one.
[[nodiscard]] Result<std::vector<MapOptions>> parse_rbttab(std::string_view file, std::string_view text);
/// Error: not_found (no such file), io, and what parse_rbttab() says.
[[nodiscard]] Result<std::vector<MapOptions>> read_rbttab(const std::filesystem::path& file);
/// The entry of that name. Error: not_found, with those there are.
[[nodiscard]] Result<MapOptions> find_in_rbttab(const std::filesystem::path& file, std::string_view name);

}  // namespace rbt::tools::map
