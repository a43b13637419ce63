#include "tools/rbt-connect/describe.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "common/sizes.h"

namespace rbt::tools {

namespace {

using nlohmann::ordered_json;

std::string transport_name(std::uint8_t type) {
  switch (type) {
    case 1: return "rdma";
    case 2: return "fc";
    case 3: return "tcp";
    case 254: return "loop";
    default: return std::to_string(type);
  }
}

std::string subtype_name(std::uint8_t subtype) {
  switch (subtype) {
    case 1: return "referral";
    case 2: return "nvme subsystem";
    case 3: return "current discovery subsystem";
    default: return std::to_string(subtype);
  }
}

std::string hexadecimal(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const auto byte : bytes)
    text += fmt::format("{:02x}", byte);
  return text;
}

std::string version_text(nvme::Version version) {
  return fmt::format("{}.{}.{}", version.major_number(), version.minor_number(), version.tertiary_number());
}

// Columns as wide as their widest cell, two spaces between.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i)
      line += fmt::format("{:<{}}  ", row[i], widths[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::vector<std::string> features(const initiator::Namespace& disk) {
  std::vector<std::string> words;
  if (disk.read_only) words.emplace_back("read-only");
  if (disk.volatile_write_cache) words.emplace_back("write-cache");
  if (disk.thin) words.emplace_back("thin");
  if (disk.abilities.discard) words.emplace_back("discard");
  if (disk.abilities.write_zeroes) words.emplace_back("write-zeroes");
  if (disk.abilities.compare) words.emplace_back("compare");
  return words;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words)
    text += (text.empty() ? "" : ",") + word;
  return text;
}

}  // namespace

std::string describe(const initiator::DiscoveryLog& log, Format format) {
  if (format == Format::json) {
    ordered_json json{{"version", 1}, {"generation", log.generation}, {"entries", ordered_json::array()}};
    for (const auto& entry : log.entries)
      json["entries"].push_back({{"trtype", transport_name(entry.transport_type)},
                                 {"adrfam", entry.address_family},
                                 {"subtype", subtype_name(entry.subtype)},
                                 {"treq", entry.requirements},
                                 {"portid", entry.port_id},
                                 {"traddr", entry.address},
                                 {"trsvcid", entry.service},
                                 {"subnqn", entry.subsystem_nqn}});
    return json.dump(2) + "\n";
  }
  if (log.entries.empty()) return "no subsystem is offered to this host\n";
  std::vector<std::vector<std::string>> rows{{"SUBSYSTEM", "TRANSPORT", "ADDRESS", "SERVICE", "KIND"}};
  for (const auto& entry : log.entries)
    rows.push_back({entry.subsystem_nqn, transport_name(entry.transport_type), entry.address, entry.service,
                    subtype_name(entry.subtype)});
  return table(rows);
}

std::string describe(const initiator::Session& session, Format format) {
  const auto& controller = session.controller();
  if (format == Format::json) {
    ordered_json json{{"version", 1},
                      {"uri", session.uri().to_string()},
                      {"subsystem", controller.subsystem_nqn},
                      {"model", controller.model},
                      {"serial", controller.serial},
                      {"firmware", controller.firmware},
                      {"cntlid", controller.cntlid.value()},
                      {"nvme", version_text(controller.version)},
                      {"transfer_max_bytes", controller.transfer_max.value()},
                      {"in_capsule_max_bytes", controller.in_capsule_max},
                      {"queue_entries_max", controller.queue_entries_max},
                      {"namespaces", ordered_json::array()}};
    for (const auto& disk : session.namespaces())
      json["namespaces"].push_back(
          {{"nsid", disk.nsid.value()},
           {"size_bytes", disk.size().value()},
           {"blocks", disk.blocks.value()},
           {"block_size", disk.block_size()},
           {"uuid", disk.uuid.is_zero() ? ordered_json() : ordered_json(disk.uuid.to_string())},
           {"nguid", hexadecimal(disk.nguid)},
           {"read_only", disk.read_only},
           {"write_cache", disk.volatile_write_cache},
           {"features", features(disk)}});
    return json.dump(2) + "\n";
  }
  std::string text = fmt::format(
      "{}\n  model {}, serial {}, firmware {}, NVMe {}, controller {}\n  transfers to {}, in-capsule data to {}, "
      "queues to {} "
      "entries\n",
      controller.subsystem_nqn, controller.model, controller.serial, controller.firmware,
      version_text(controller.version), controller.cntlid.value(), format_bytes(controller.transfer_max),
      format_bytes(Bytes(controller.in_capsule_max)), controller.queue_entries_max);
  if (session.namespaces().empty()) return text + "  no namespace\n";
  std::vector<std::vector<std::string>> rows{{"NSID", "SIZE", "BLOCKS", "BLOCK", "UUID", "FEATURES"}};
  for (const auto& disk : session.namespaces())
    rows.push_back({std::to_string(disk.nsid.value()), format_bytes(disk.size()), std::to_string(disk.blocks.value()),
                    std::to_string(disk.block_size()), disk.uuid.is_zero() ? "-" : disk.uuid.to_string(),
                    joined(features(disk))});
  return text + table(rows);
}

}  // namespace rbt::tools
