// docs/conformance.md says what a target answers and which test holds it to that. It is made here, out of the table of
// opcodes and of the answers of a target that is asked for everything there is a number for; this test compares.
// Written anew: RBT_CONFORMANCE=write build/dev/tests/sim/sim_conformance

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/nvme/recovery.h"
#include "target/opcodes.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::StatusCode;
using target::ControllerKind;
using target::QueueKind;

namespace {

/// What there is a number for. `test`: what holds us to it, if we have it; `linux`: what kernel_host.sh or access.sh says of it.
struct Item {
  unsigned number;
  const char* name;
  const char* test = "";
  const char* linux_host = "";
};

constexpr Item kFabrics[] = {
    {0x00, "Property Set", "Properties read as they should, and only with their own size", "nvme id-ctrl"},
    {0x01, "Connect", "An admin Connect that is wrong is refused, and says where",
     "The host has an admin queue and two I/O queues"},
    {0x04, "Property Get", "Properties read as they should, and only with their own size", "nvme id-ctrl"},
    {0x05, "Authentication Send",
     "Host and subsystem prove themselves to each other on every queue, with every hash and group"},
    {0x06, "Authentication Receive",
     "Host and subsystem prove themselves to each other on every queue, with every hash and group"},
    {0x08, "Disconnect"},
};
constexpr Item kAdmin[] = {
    {0x02, "Get Log Page", "Log pages are read in pieces, with zeroes behind their end", "nvme smart-log"},
    {0x06, "Identify", "Identify refuses what is not there", "nvme id-ctrl"},
    {0x08, "Abort", "A command that waits for a buffer is stopped at once"},
    {0x09, "Set Features", "Features that hosts set are there, and others are not"},
    {0x0a, "Get Features", "Features have a current, a default and a saved value, and say what can be done with them",
     "nvme get-feature, number of queues"},
    {0x0c, "Asynchronous Event Request", "Asynchronous Event Requests are held, four of them, and Abort ends one"},
    {0x0d, "Namespace Management"},
    {0x10, "Firmware Commit"},
    {0x11, "Firmware Image Download"},
    {0x14, "Device Self-test"},
    {0x15, "Namespace Attachment"},
    {0x18, "Keep Alive", "Keep Alive keeps the controller, and so does any other command on any queue"},
    {0x80, "Format NVM", "Format NVM erases a namespace, and nobody comes to its blocks meanwhile", "nvme format"},
    {0x81, "Security Send"},
    {0x82, "Security Receive"},
    {0x84, "Sanitize"},
    {0x86, "Get LBA Status"},
    {static_cast<unsigned>(nvme::kFenceOpcode), "Fence (vendor specific)",
     "A fence ends an association of the same host, and says so when its last command has left the store"},
};
constexpr Item kIo[] = {
    {0x00, "Flush", "Flush reaches one namespace or all, and no other", "fsck -f finds nothing"},
    {0x01, "Write", "What was written is read back, from one block to a megabyte",
     "4 KiB random writes at depth 32 on two queues read back with their checksums"},
    {0x02, "Read", "What was written is read back, from one block to a megabyte",
     "4 KiB random writes at depth 32 on two queues read back with their checksums"},
    {0x04, "Write Uncorrectable"},
    {0x05, "Compare", "Compare tells equal blocks from others, whichever byte it is, over every store",
     "nvme compare: the same blocks"},
    {0x08, "Write Zeroes", "Write Zeroes makes zeroes of its range and of nothing else",
     "nvme write-zeroes with deallocation"},
    {0x09, "Dataset Management", "Dataset Management checks every range before it touches one", "nvme dsm"},
    {0x0c, "Verify", "A medium that cannot be read fails Compare and Verify, and counts as one", "nvme verify"},
    {0x0d, "Reservation Register", "Reservation Register adds, replaces and removes the key of a host",
     "nvme resv-register"},
    {0x0e, "Reservation Report",
     "Reservation Report says who is registered and what is reserved, in the extended form only", "nvme resv-report"},
    {0x11, "Reservation Acquire", "A reservation is acquired by a registrant, and preempted by another",
     "nvme resv-acquire"},
    {0x15, "Reservation Release", "Reservation Release ends what the host holds, and clears everything",
     "nvme resv-release"},
    {0x19, "Copy", "Copy puts its sources one after the other, also where they overlap the destination or one another",
     "nvme copy, two ranges the other way round"},
};
constexpr Item kFused[] = {
    {0x05, "Compare and Write", "Counters that several hosts increase with pairs lose no increase"},
};
constexpr Item kIdentify[] = {
    {0x00, "Namespace", "Identify Namespace describes the store", "nvme id-ns"},
    {0x01, "Controller", "Identify Controller says what hosts insist on, and nothing that is not so", "nvme id-ctrl"},
    {0x02, "Active namespaces", "The list of namespaces begins behind the one that was asked for", "nvme list"},
    {0x03, "Namespace identification descriptors",
     "NGUID and UUID are the same bytes in the descriptor list and in Identify Namespace",
     "nvme ns-descs has the UUID that the kernel has"},
    {0x04, "NVM sets"},
    {0x05, "Namespace, of a command set", "Identify refuses what is not there"},
    {0x06, "Controller, of a command set", "Identify refuses what is not there"},
    {0x07, "Active namespaces, of a command set", "Identify refuses what is not there"},
    {0x08, "Namespace, independent of command sets"},
    {0x10, "Allocated namespaces", "The list of namespaces begins behind the one that was asked for"},
    {0x11, "Allocated namespace", "Identify refuses what is not there"},
    {0x12, "Controllers of a namespace"},
    {0x13, "Controllers"},
    {0x1c, "Command sets"},
};
constexpr Item kLogs[] = {
    {0x00, "Supported log pages"},
    {0x01, "Error information", "The error log says which byte of the entry was wrong, which block, and which queue",
     "nvme error-log"},
    {0x02, "SMART / health", "The SMART log counts what was really moved", "nvme smart-log"},
    {0x03, "Firmware slots", "Log pages are read in pieces, with zeroes behind their end", "nvme fw-log"},
    {0x04, "Changed namespaces", "There is one event until its log is read, whatever else changes"},
    {0x05, "Commands supported and effects", "The effects log lists the commands that are served", "nvme effects-log"},
    {0x06, "Device self-test"},
    {0x0c, "Asymmetric namespace access", "A change of access is told once, and again after its log was read"},
    {0x0d, "Persistent events"},
    {0x12, "Features supported and effects"},
    {0x70, "Discovery", "The discovery log names every subsystem that the host may connect to, and where",
     "nvme discover finds the subsystem"},
    {0x80, "Reservation notification",
     "A host hears of reservations by one event at a time, and reads what happened page by page"},
    {nvme::kRecoveryLogId, "Recovery (vendor specific)",
     "The recovery log names the target, the association and the namespace's incarnation"},
};
constexpr const char* kFeatureTest =
    "Features have a current, a default and a saved value, and say what can be done with them";
constexpr Item kFeatures[] = {
    {0x01, "Arbitration"},
    {0x02, "Power management"},
    {0x04, "Temperature threshold"},
    {0x05, "Error recovery"},
    {0x06, "Volatile write cache", kFeatureTest},
    {0x07, "Number of queues", kFeatureTest, "nvme get-feature, number of queues"},
    {0x0a, "Write atomicity"},
    {0x0b, "Asynchronous events", kFeatureTest, "nvme get-feature, asynchronous events"},
    {0x0e, "Timestamp", "The timestamp runs on from what the host set"},
    {0x0f, "Keep alive timer", kFeatureTest, "nvme get-feature, keep alive timer"},
    {0x16, "Host behavior"},
    {0x81, "Host identifier", "The host identifier is Connect's"},
    {0x82, "Reservation notification mask", "The notification mask silences what it names, namespace by namespace"},
    {0x83, "Reservation persistence",
     "Reservation persistence is a feature of the namespace, and turned off it forgets"},
};

/// Who has a thing.
struct Have {
  bool io = false;
  bool discovery = false;
};
constexpr const char* words(Have have) {
  return have.io          ? have.discovery ? "every controller" : "I/O controllers"
         : have.discovery ? "discovery controllers"
                          : "";
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

const std::filesystem::path kSource = RBT_SOURCE_DIR;

/// Every test's source, for their names. A name may be cut in two by the formatter.
const std::string& tests() {
  static const std::string all = [] {
    std::string text;
    for (const auto& each : std::filesystem::recursive_directory_iterator(kSource / "tests/sim"))
      if (each.path().extension() == ".cc" && each.path().filename() != "conformance_test.cc")
        text += read_file(each.path());
    return text;
  }();
  return all;
}

template <std::size_t N, typename Who>
std::string table(const char* title, const char* what, const Item (&items)[N], Who who) {
  const std::string host =
      read_file(kSource / "tests/softroce/kernel_host.sh") + read_file(kSource / "tests/softroce/access.sh");
  std::string text =
      fmt::format("\n## {}\n\n| {} | | served by | held to it by | and, by Linux's host |\n|-|-|-|-|-|\n", title, what);
  unsigned last = 0;
  for (const Item& item : items) {
    INFO(title << " " << item.name);
    CHECK(item.number >= last);
    last = item.number;
    const Have have = who(item.number);
    const bool served = have.io || have.discovery;
    if (served) {  // then by a test that there is
      CHECK(std::string(item.test) != "");
      CHECK(tests().find(fmt::format("TEST_CASE(\"{}\"", item.test)) != std::string::npos);
      if (*item.linux_host != 0) CHECK(host.find(fmt::format("claim \"{}\"", item.linux_host)) != std::string::npos);
    }
    text += fmt::format("| {:02x}h | {} | {} | {} | {} |\n", item.number, item.name, served ? words(have) : "nobody",
                        served ? item.test : "", served ? item.linux_host : "");
  }
  for (unsigned number = 0; number < 256; ++number) {  // nothing is served that is not listed
    INFO(title << " " << number);
    const bool listed =
        std::any_of(std::begin(items), std::end(items), [&](const Item& item) { return item.number == number; });
    if (!listed) CHECK(std::string(words(who(number))).empty());
  }
  return text;
}

/// A target that is asked.
struct Asked : TargetRig {
  explicit Asked(Gate& gate)
      : TargetRig({.gate = &gate}), io(associate()), discovery(associate(std::string(nvme::kDiscoveryNqn))) {
    gate.open = true;
  }
  bool serves(RawQueue& admin, const nvme::SubmissionQueueEntry& sqe, std::uint32_t length, StatusCode refusal) {
    auto to = memory(admin, 4096);
    return transfer(admin, sqe, *to, length).code() != refusal;
  }
  template <typename Entry>
  Have have(const Entry& entry, std::uint32_t length, StatusCode refusal) {
    return {serves(*io.admin, entry, length, refusal), serves(*discovery.admin, entry, length, refusal)};
  }
  Association io, discovery;
};

Have commands(QueueKind kind, unsigned opcode) {
  const auto* const operation = target::find_operation(kind, static_cast<std::uint8_t>(opcode));
  if (operation == nullptr) return {};
  return {true, kind != QueueKind::io && operation->admission.on_discovery};
}

std::string document() {
  std::string text =
      "# Conformance\n\n"
      "What a target serves of NVMe Base 2.0, NVM Command Set 1.0 and NVMe over Fabrics 1.1, and what holds it to "
      "that: a test in\n"
      "`tests/sim`, whose host is a raw one that says any bytes, and perhaps a claim of "
      "`tests/softroce/kernel_host.sh` or `access.sh`, whose "
      "host is\nLinux's. Made by `tests/sim/conformance_test.cc` out of the table of opcodes and of what a target "
      "answers; a "
      "test compares.\n"
      "To write it anew: `RBT_CONFORMANCE=write build/dev/tests/sim/sim_conformance`.\n";
  const auto of = [](QueueKind kind) { return [kind](unsigned opcode) { return commands(kind, opcode); }; };
  text += table("Fabrics commands", "type", kFabrics, of(QueueKind::fabrics));
  text += table("Admin commands", "opcode", kAdmin, of(QueueKind::admin));
  text += table("I/O commands", "opcode", kIo, of(QueueKind::io));
  text += table("Fused pairs", "first", kFused, [](unsigned opcode) -> Have {
    const auto* const first = target::find_operation(QueueKind::io, static_cast<std::uint8_t>(opcode));
    return {first != nullptr && first->fuse == nvme::Fuse::first, false};
  });
  Gate gate;
  Asked asked(gate);
  text += table("Identify", "CNS", kIdentify, [&](unsigned cns) {
    // For the lists NSID 0 is the beginning; for the others there is a namespace 1.
    const bool list = cns == 0x02 || cns == 0x07 || cns == 0x10;
    return asked.have(nvme::encode_identify({.nsid = Nsid(list ? 0 : 1), .cns = static_cast<std::uint8_t>(cns)}), 4096,
                      StatusCode::invalid_field);
  });
  text += table("Log pages", "log", kLogs, [&](unsigned lid) {
    return asked.have(nvme::encode_get_log_page(
                          {.nsid = nvme::kNsidAll, .lid = static_cast<std::uint8_t>(lid), .length = Bytes(512)}),
                      512, StatusCode::invalid_log_page);
  });
  text += table("Features", "feature", kFeatures, [&](unsigned fid) {
    return asked.have(nvme::encode_get_features({.nsid = Nsid(0),
                                                 .fid = static_cast<std::uint8_t>(fid),
                                                 .select = nvme::FeatureSelect::supported,
                                                 .value = 1}),
                      0, StatusCode::invalid_field);
  });
  return text;
}

}  // namespace

TEST_CASE("docs/conformance.md says what the target serves, and which tests hold it to that") {
  const auto path = kSource / "docs/conformance.md";
  const std::string wanted = document();
  if (const char* const write = std::getenv("RBT_CONFORMANCE"); write != nullptr && std::string(write) == "write")
    std::ofstream(path) << wanted;
  const std::string is = read_file(path);
  std::istringstream left(is), right(wanted);
  std::string is_line, wanted_line;
  for (int line = 1; std::getline(right, wanted_line); ++line) {
    INFO("line " << line << "; to write it anew: RBT_CONFORMANCE=write build/dev/tests/sim/sim_conformance");
    std::getline(left, is_line);
    REQUIRE(is_line == wanted_line);
  }
  CHECK(is == wanted);
}
