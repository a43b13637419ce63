/* A store plugin in C: a disk in memory. Three of a kind, chosen when it is compiled:
 *   (nothing)      asynchronous: a thread of its own carries out what rbt's threads submit
 *   -DBLOCKING     rbt calls execute() on threads of its own
 *   -DMAPPED       the memory itself is offered: rbt moves data into and out of it without asking
 * cc -shared -fPIC ram_store_plugin.c -o ram_store.so $(pkg-config --cflags rbt-store-plugin) -pthread
 * rbt-target … --store plugin:./ram_store.so,size=67108864 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "target/store/rbt_store_plugin.h"

struct disk {
  uint64_t size;
  int memfd;
  char* memory;
  /* Of the asynchronous one: a line of requests, linked through user[0], and who works on it. */
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t wanted;
  struct rbt_request *first, *last;
  int stopping;
};

static int execute(void* store, struct rbt_request* request) {
  char* const place = ((struct disk*)store)->memory + request->offset;
  switch (request->operation) {
    case RBT_READ: memcpy(request->data, place, request->length); return RBT_OK;
    case RBT_WRITE: memcpy(place, request->data, request->length); return RBT_OK;
    case RBT_WRITE_ZEROES: memset(place, 0, request->length); return RBT_OK;
    case RBT_DISCARD: return RBT_OK; /* advice, not taken */
    default: return RBT_UNSUPPORTED;
  }
}

#if defined(MAPPED)
#define WAY .map_region = map_region, .execute = execute
static int map_region(void* store, struct rbt_region* region) {
  struct disk* disk = store;
  region->base = disk->memory;
  region->size = disk->size;
  region->fd = disk->memfd;
  return 0;
}
#elif defined(BLOCKING)
#define WAY .execute = execute
#else
#define WAY .submit = submit
#define ASYNCHRONOUS
static void* work(void* store) {
  struct disk* disk = store;
  pthread_mutex_lock(&disk->mutex);
  while (disk->first != NULL || !disk->stopping) {
    struct rbt_request* request = disk->first;
    if (request == NULL) {
      pthread_cond_wait(&disk->wanted, &disk->mutex);
      continue;
    }
    disk->first = request->user[0];
    pthread_mutex_unlock(&disk->mutex);
    request->done(request, execute(disk, request)); /* from now on the request is rbt's */
    pthread_mutex_lock(&disk->mutex);
  }
  pthread_mutex_unlock(&disk->mutex);
  return NULL;
}

static int submit(void* store, struct rbt_request* request) { /* no open_queue(): we get the store */
  struct disk* disk = store;
  request->user[0] = NULL;
  pthread_mutex_lock(&disk->mutex);
  *(disk->first == NULL ? &disk->first : (struct rbt_request**)&disk->last->user[0]) = request;
  disk->last = request;
  pthread_cond_signal(&disk->wanted);
  pthread_mutex_unlock(&disk->mutex);
  return RBT_PENDING;
}
#endif

static int open_disk(const struct rbt_host* host, const struct rbt_option* options, size_t count, void** store,
                     char* error, size_t error_size) {
  uint64_t size = 0;
  if (count == 1 && strcmp(options[0].key, "size") == 0) size = strtoull(options[0].value, NULL, 0);
  if (size == 0 || size % 4096 != 0)
    return snprintf(error, error_size, "size= and a multiple of 4096 is expected, and nothing else");
  struct disk* disk = calloc(1, sizeof *disk);
  disk->size = size;
  disk->memfd = memfd_create("ram_store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  disk->memory = MAP_FAILED;
  if (disk->memfd >= 0 && ftruncate(disk->memfd, (off_t)size) == 0 &&
      fcntl(disk->memfd, F_ADD_SEALS, F_SEAL_SHRINK) == 0)
    disk->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, disk->memfd, 0);
  if (disk->memory == MAP_FAILED) {
    close(disk->memfd);
    free(disk);
    return snprintf(error, error_size, "%s bytes of memory cannot be had", options[0].value);
  }
#ifdef ASYNCHRONOUS
  pthread_mutex_init(&disk->mutex, NULL);
  pthread_cond_init(&disk->wanted, NULL);
  pthread_create(&disk->thread, NULL, work, disk);
#endif
  host->log(host->context, 1, "ram_store: a disk that forgets everything");
  *store = disk;
  return 0;
}

static void close_disk(void* store) {
  struct disk* disk = store;
#ifdef ASYNCHRONOUS
  pthread_mutex_lock(&disk->mutex);
  disk->stopping = 1;
  pthread_cond_signal(&disk->wanted);
  pthread_mutex_unlock(&disk->mutex);
  pthread_join(disk->thread, NULL);
#endif
  munmap(disk->memory, disk->size);
  close(disk->memfd);
  free(disk);
}

static int describe(void* store, struct rbt_description* description, char* error, size_t error_size) {
  (void)error, (void)error_size;
  description->size = ((struct disk*)store)->size;
  description->block_size = 512;
  description->write_zeroes = RBT_EMULATE; /* what a region has to say */
#ifndef MAPPED
  description->write_zeroes = description->discard = RBT_NATIVE;
#endif
  return 0; /* flush is RBT_NONE: there is nothing behind the memory */
}

static const struct rbt_store_plugin plugin = {.struct_size = sizeof plugin,
                                               .version = RBT_STORE_PLUGIN_VERSION,
                                               .name = "ram_store",
                                               .help = "size=BYTES",
                                               .open = open_disk,
                                               .close = close_disk,
                                               .describe = describe,
                                               WAY};

const struct rbt_store_plugin* rbt_store_plugin_entry(void) {
  return &plugin;
}
