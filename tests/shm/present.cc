// A volume as a device, or on a socket, until SIGTERM: what is tested of initiator/present/ by programs that do not know rbt.
//   present URI nbd|fuse|socket [directory=DIR] [path=SOCKET] [queues=N] [recover=N] [readonly]
//   present - list | remove=N | clean=DIR: what processes that were killed have left
// Prints the device and "ready"; SIGUSR1: resize(). Ends with status 0 when it has taken everything away.
#include <fmt/format.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>

#include "initiator/present/fuse_device.h"
#include "initiator/present/nbd_device.h"
#include "initiator/present/nbd_server.h"
#include "tools/program/fabrics.h"
#include "tools/program/interrupt.h"

namespace rbt::test {
namespace {

using namespace std::chrono_literals;
using namespace initiator;

volatile std::sig_atomic_t resize_wanted = 0;

struct Arguments {
  std::string via;
  std::map<std::string, std::string, std::less<>> words;
  DeviceOptions device{.queues = 2};
  [[nodiscard]] std::uint32_t number(const std::string& key, std::uint32_t otherwise) const {
    const auto found = words.find(key);
    if (found == words.end()) return otherwise;
    std::uint32_t value = 0;
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
    return value;
  }
};

int report(const Error& error) {
  fmt::print(stderr, "present: {}\n", error.message());
  return 1;
}

void say_ready(const std::string& where) {
  fmt::print("{}\nready\n", where);
  std::fflush(stdout);
}

template <typename Ended>
void go_on(Volume& volume, const tools::Interrupt& interrupt, const Clock& clock, Ended ended) {
  while (!interrupt.raised() && volume.state() != VolumeState::failed && !ended())
    static_cast<void>(volume.run_until([&] { return interrupt.raised() || resize_wanted != 0; }, clock.now() + 50ms));
}

int serve_socket(Volume& volume, transport::Reactor& reactor, const Arguments& arguments, const Clock& clock) {
  const tools::Interrupt interrupt;
  auto server = NbdServer::create(volume, reactor, {.read_only = arguments.device.read_only});
  if (!server) return report(server.error());
  const std::string path = arguments.words.at("path");
  if (auto listening = (*server)->listen(path); !listening) return report(listening.error());
  say_ready(path);
  go_on(volume, interrupt, clock, [] { return false; });
  return 0;
}

int serve_device(Volume& volume, transport::Reactor& reactor, const Arguments& arguments, const Clock& clock) {
  const tools::Interrupt interrupt;
  auto device = arguments.via == "nbd"
                    ? present_nbd(volume, reactor, arguments.device)
                    : present_fuse(volume, reactor, arguments.device, arguments.words.at("directory"));
  if (!device) return report(device.error());
  const DeviceOptions& options = (*device)->options();
  fmt::print("queues {} depth {} io_max {}\n", options.queues, options.depth, options.io_max.value());
  say_ready((*device)->path());
  while (!interrupt.raised() && (*device)->ended() == nullptr) {
    go_on(volume, interrupt, clock, [&] { return (*device)->ended() != nullptr || resize_wanted != 0; });
    if (resize_wanted == 0) continue;
    resize_wanted = 0;
    auto resized = (*device)->resize();
    fmt::print("{}\n", resized ? "resized" : resized.error().message());
    std::fflush(stdout);
  }
  if ((*device)->ended() != nullptr) return report(*(*device)->ended());
  const VolumeStatistics& counts = volume.statistics();
  fmt::print("losses {} reissued {} longest_ms {}\n", counts.losses, counts.reissued,
             std::chrono::duration_cast<std::chrono::milliseconds>(counts.longest_loss).count());
  if (auto removed = (*device)->remove(clock.now() + 10s); !removed) return report(removed.error());
  return 0;
}

int look_after(const Arguments& arguments) {
  const SystemClock clock;
  for (const NbdDeviceInfo& each : list_nbd())
    fmt::print("nbd{} pid {} identifier {} size {}\n", each.number, each.pid, each.identifier, each.size.value());
  if (arguments.words.contains("clean")) fmt::print("{} removed\n", clean_fuse(arguments.words.at("clean")));
  if (!arguments.words.contains("remove")) return 0;
  auto removed = remove_nbd(arguments.number("remove", 0), clock, clock.now() + 5s);
  return removed ? 0 : report(removed.error());
}

int run(const std::string& text, const Arguments& arguments) {
  const SystemClock clock;
  const auto logger = make_stderr_logger(LogLevel::info);
  Random random = Random::from_entropy();
  auto uri = Uri::parse(text);
  if (!uri) return report(uri.error());
  tools::Fabrics fabrics(*logger, random);
  auto fabric = fabrics.open(uri->scheme);
  if (!fabric) return report(fabric.error());
  auto reactor = transport::Reactor::create(clock, *logger);
  if (!reactor) return report(reactor.error());
  VolumeOptions options;
  if (arguments.via == "nbd") {
    options.queue.buffers = nbd_buffers(arguments.device);
    options.requests = nbd_requests(arguments.device);
  } else if (arguments.via == "fuse") {
    options.queue.buffers = fuse_buffers(arguments.device);
    options.requests = fuse_requests(arguments.device);
  } else {
    options.queue.buffers = NbdServer::buffers_min(NbdServerOptions{}.connections_max);
  }
  options.session.keep_alive = 4s;
  options.open_patience = 30s;  // emulated machines on busy ones
  options.on_state = [&](VolumeState state, const Error* why) {
    logger->info("volume: {}{}{}", name(state), why == nullptr ? "" : ": ", why == nullptr ? "" : why->message());
  };
  const Environment environment{**fabric, clock, *logger, random};
  auto volume = Volume::open(environment, {&*uri, 1}, **reactor, options);
  if (!volume) return report(volume.error());
  return arguments.via == "socket" ? serve_socket(**volume, **reactor, arguments, clock)
                                   : serve_device(**volume, **reactor, arguments, clock);
}

}  // namespace
}  // namespace rbt::test

int main(int count, char** words) {
  if (count < 3) return 2;
  rbt::test::Arguments arguments;
  arguments.via = words[2];
  const bool present = std::string_view(words[1]) != "-";
  for (int i = present ? 3 : 2; i < count; ++i) {
    const std::string word = words[i];
    const std::size_t equals = word.find('=');
    arguments.words[word.substr(0, equals)] = equals == std::string::npos ? "" : word.substr(equals + 1);
  }
  arguments.device.queues = arguments.number("queues", 2);
  arguments.device.read_only = arguments.words.contains("readonly");
  if (arguments.words.contains("recover")) arguments.device.recover = arguments.number("recover", 0);
  std::signal(SIGUSR1, [](int) { rbt::test::resize_wanted = 1; });
  return present ? rbt::test::run(words[1], arguments) : rbt::test::look_after(arguments);
}
