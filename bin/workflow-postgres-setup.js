#!/usr/bin/env node
import { main } from '../lib/setup.js';

process.exitCode = await main(process.argv.slice(2));
