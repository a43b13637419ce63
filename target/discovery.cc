#include "target/discovery.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "common/nvme/text.h"
#include "common/nvme/types.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/reactor_context.h"

namespace rbt::target {
namespace {

using nvme::to_le;

constexpr std::uint16_t kAdminQueueEntries = 32;
constexpr std::uint16_t kDynamicController = 0xffff;

// A wildcard does not, and neither does a name: hosts are told addresses.
bool is_one_address(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> binary{};
  const bool numeric =
      ::inet_pton(AF_INET, host.c_str(), binary.data()) == 1 || ::inet_pton(AF_INET6, host.c_str(), binary.data()) == 1;
  return numeric && host != "0.0.0.0" && host != "::";
}

void set_rdma_address(nvmf_disc_log_entry& entry, const Uri& uri, const std::string& reached_at) {
  // Whoever listens everywhere was reached somewhere: that is where the host can find us again.
  const std::string& host = is_one_address(uri.host) || reached_at.empty() ? uri.host : reached_at;
  entry.trtype = NVMF_TRTYPE_RDMA;
  entry.adrfam = host.find(':') != std::string::npos ? NVMF_ADDR_FAMILY_IP6 : NVMF_ADDR_FAMILY_IP4;
  nvme::set_padded(entry.trsvcid, std::to_string(uri.port));
  nvme::set_padded(entry.traddr, host);
  entry.tsas.rdma.qptype = NVMF_RDMA_QPTYPE_CONNECTED;
  entry.tsas.rdma.prtype = NVMF_RDMA_PRTYPE_NOT_SPECIFIED;
  entry.tsas.rdma.cms = NVMF_RDMA_CMS_RDMA_CM;
}

// Fabrics within one machine have no number of their own: "intra-host transport" is what the specification leaves them.
void set_local_address(nvmf_disc_log_entry& entry, const Uri& uri) {
  entry.trtype = NVMF_TRTYPE_LOOP;
  entry.adrfam = NVMF_ADDR_FAMILY_LOOP;
  nvme::set_padded(entry.trsvcid, uri.port != 0 ? std::to_string(uri.port) : std::string());
  nvme::set_padded(entry.traddr, uri.scheme == Uri::Scheme::shm ? uri.option("socket").value_or("") : uri.host);
}

nvmf_disc_log_entry make_entry(const Subsystem& subsystem, const ListenAddress& address, std::size_t port,
                               const std::string& reached_at) {
  nvmf_disc_log_entry entry{};
  entry.subtype = NVME_NQN_NVME;
  entry.treq = NVMF_TREQ_DISABLE_SQFLOW;
  entry.portid = to_le(static_cast<std::uint16_t>(port));
  entry.cntlid = to_le(kDynamicController);
  entry.asqsz = to_le(kAdminQueueEntries);
  std::copy(subsystem.nqn().text().begin(), subsystem.nqn().text().end(), std::begin(entry.subnqn));
  if (address.uri.scheme == Uri::Scheme::rdma) {
    set_rdma_address(entry, address.uri, reached_at);
  } else {
    set_local_address(entry, address.uri);
  }
  return entry;
}

}  // namespace

std::vector<std::byte> build_discovery_log(const Connection& connection, const Controller::Identity& host) {
  const Core& core = connection.reactor().core();
  const auto fabric = connection.fabric().fabric().name();
  std::vector<nvmf_disc_log_entry> entries;
  for (const auto& subsystem : core.subsystems) {
    if (subsystem->kind() != ControllerKind::io || !subsystem->allows(host.host_nqn, host.host_id)) continue;
    for (std::size_t i = 0; i < core.addresses.size(); ++i)
      if (core.addresses[i].fabric == fabric)
        entries.push_back(make_entry(*subsystem, core.addresses[i], i + 1, connection.local_host()));
  }
  nvmf_discovery_log header;  // not {}: it ends in an array of no size, which clang does not want to initialise
  std::memset(&header, 0, sizeof header);
  header.numrec = to_le(static_cast<std::uint64_t>(entries.size()));
  std::vector<std::byte> log(sizeof header + entries.size() * sizeof(nvmf_disc_log_entry));
  std::memcpy(log.data(), &header, sizeof header);
  if (!entries.empty())
    std::memcpy(log.data() + sizeof header, entries.data(), entries.size() * sizeof(nvmf_disc_log_entry));
  return log;
}

}  // namespace rbt::target
