#include "initiator/namespace_list.h"

#include <fmt/format.h>

#include <array>

#include "common/nvme/admin_command.h"
#include "common/nvme/types.h"
#include "initiator/call.h"
#include "initiator/identify.h"

namespace rbt::initiator {

namespace {

// What one session keeps of namespaces, whatever a controller claims to have.
constexpr std::size_t kNamespacesMax = 4096;
constexpr std::uint8_t kCnsNamespace = 0x00;
constexpr std::uint8_t kCnsActiveList = 0x02;
constexpr std::uint8_t kCnsDescriptors = 0x03;

Result<std::vector<Nsid>> list_ids(const AdminCall& admin) {
  std::vector<Nsid> ids;
  Nsid after(0);
  for (bool more = true; more;) {
    nvme_ns_list page{};
    auto answer = admin(nvme::encode_identify({.nsid = after, .cns = kCnsActiveList}), bytes_of(page));
    if (!answer) return failure(std::move(answer.error()).within("listing namespaces"));
    if (!answer->status().ok()) return failure(status_error("listing namespaces", answer->status()));
    auto parsed = parse_namespace_list(page, after, ids);
    if (!parsed) return failure(std::move(parsed.error()));
    if (ids.size() > kNamespacesMax)
      return failure(
          ErrorKind::unsupported,
          fmt::format("the subsystem has more than {} namespaces, the most that one session keeps", kNamespacesMax));
    if (!ids.empty()) after = ids.back();
    more = *parsed;
  }
  return ids;
}

}  // namespace

Result<std::optional<Namespace>> read_namespace(const AdminCall& admin, Nsid nsid, const ControllerInfo& controller,
                                                Logger& logger, std::string_view label) {
  nvme_id_ns data{};
  auto answer = admin(nvme::encode_identify({.nsid = nsid, .cns = kCnsNamespace}), bytes_of(data));
  if (!answer) return failure(std::move(answer.error()));
  if (!answer->status().ok()) {  // it may have gone since it was listed
    logger.warning("{}: {}", label,
                   status_error(fmt::format("identifying namespace {}", nsid.value()), answer->status()).message());
    return std::nullopt;
  }
  if (nvme::from_le(data.ncap) == 0) return std::nullopt;  // has gone, too: it is not active any more
  auto parsed = parse_identify_namespace(data, nsid, controller);
  if (!parsed) {
    logger.warning("{}: {}", label, parsed.error().message());
    return std::nullopt;
  }
  std::array<std::byte, nvme::kIdentifyBytes> descriptors{};
  answer = admin(nvme::encode_identify({.nsid = nsid, .cns = kCnsDescriptors}), descriptors);
  if (!answer) return failure(std::move(answer.error()));
  if (answer->status().ok() && !parse_namespace_descriptors(descriptors, *parsed)) {  // before NVMe 1.3: no such list
    logger.warning(
        "{}: namespace {} cannot be used: it has another command set than NVM, or a broken list of identifiers", label,
        nsid.value());
    return std::nullopt;
  }
  return std::optional<Namespace>(*parsed);
}

Result<std::vector<Namespace>> list_namespaces(const AdminCall& admin, const ControllerInfo& controller, Logger& logger,
                                               std::string_view label) {
  auto ids = list_ids(admin);
  if (!ids) return failure(std::move(ids.error()));
  std::vector<Namespace> namespaces;
  for (const Nsid nsid : *ids) {
    auto one = read_namespace(admin, nsid, controller, logger, label);
    if (!one) return failure(std::move(one.error()));
    if (*one) namespaces.push_back(**one);
  }
  return namespaces;
}

}  // namespace rbt::initiator
