#pragma once
// Which namespaces a controller has and what they are: Identify, asked again and again (CNS 02h, then 00h and 03h of each).

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "common/log.h"
#include "common/nvme/capsule.h"
#include "common/result.h"
#include "initiator/namespace.h"

namespace rbt::initiator {

/// One admin command with its data, and its answer; bounded in time.
using AdminCall = std::function<Result<nvme::CompletionQueueEntry>(const nvme::SubmissionQueueEntry& command,
                                                                   std::span<std::byte> data)>;

/// In ascending order. Those that cannot be used are logged (after `label`) and left out, as are those that go meanwhile.
[[nodiscard]] Result<std::vector<Namespace>> list_namespaces(const AdminCall& admin, const ControllerInfo& controller,
                                                             Logger& logger, std::string_view label);

/// One of them; nothing if it has gone or cannot be used, which was logged.
[[nodiscard]] Result<std::optional<Namespace>> read_namespace(const AdminCall& admin, Nsid nsid,
                                                              const ControllerInfo& controller, Logger& logger,
                                                              std::string_view label);

}  // namespace rbt::initiator
